//! The notice as plain text. Owns the wrapping.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::{
    Notice,
    letter::{Block, Item, Letter, Part, Question, Section},
};

/// Columns that a line has at most; links and addresses that are longer stay whole all the same,
/// since they would not work otherwise.
const COLUMNS: usize = 72;

impl Notice {
    /// The notice as plain text: UTF-8, lines of at most 72 columns that end with LF.
    pub fn render_text(&self) -> String {
        render(&Letter::of(self), self.texts().colon)
    }
}

pub(crate) fn render(letter: &Letter, colon: &str) -> String {
    let mut page = Page::default();
    page.title(&letter.subject, '=');
    page.paragraph(&letter.greeting);
    for paragraph in &letter.lead {
        page.paragraph(paragraph);
    }
    for section in &letter.sections {
        page.section(section, colon);
    }
    page.heading(&letter.questions.heading);
    for question in &letter.questions.entries {
        page.question(question);
    }
    page.blank();
    page.wrap(&letter.closing, "", "");
    page.wrap(&letter.signature, "", "");
    page.blank();
    page.lines.push("--".to_owned());
    for remark in &letter.remarks {
        page.wrap(remark, "", "");
    }
    page.lines.join("\n") + "\n"
}

#[derive(Default)]
struct Page {
    lines: Vec<String>,
}

impl Page {
    fn section(&mut self, section: &Section, colon: &str) {
        self.heading(&section.heading);
        let labels = section.parts.iter().filter_map(|part| match &part.block {
            Block::Fact { label, .. } => Some(label.width() + colon.width()),
            _ => None,
        });
        let column = labels.max().unwrap_or_default() + 2;
        let mut facts_before = false;
        for Part { block, .. } in &section.parts {
            let is_fact = matches!(block, Block::Fact { .. });
            if facts_before && !is_fact {
                self.blank();
            }
            facts_before = is_fact;
            match block {
                Block::Fact { label, value } => {
                    let label = format!("{label}{colon}");
                    let first = format!("{label}{}", " ".repeat(column - label.width()));
                    self.wrap(value, &first, &" ".repeat(column));
                }
                Block::Paragraph { text } => self.paragraph(text),
                Block::List { items } => self.list(items, "  "),
            }
        }
        if facts_before {
            self.blank();
        }
    }

    fn question(&mut self, Question { question, answer, items, link, .. }: &Question) {
        self.wrap(question, "", "");
        let answer = match link {
            Some(link) => format!("{answer} {}", link.text),
            None => answer.clone(),
        };
        self.wrap(&answer, "    ", "    ");
        if items.is_empty() {
            self.blank();
        } else {
            self.list(items, "    ");
        }
    }

    fn list(&mut self, items: &[Item], indent: &str) {
        for item in items {
            self.wrap(&item.line(), &format!("{indent}- "), &format!("{indent}  "));
        }
        self.blank();
    }

    fn paragraph(&mut self, text: &str) {
        self.wrap(text, "", "");
        self.blank();
    }

    fn heading(&mut self, text: &str) {
        self.blank();
        self.title(text, '-');
    }

    /// Underlined as far as its longest line goes.
    fn title(&mut self, text: &str, rule: char) {
        let start = self.lines.len();
        self.wrap(text, "", "");
        let width = self.lines[start..].iter().map(|line| line.width()).max().unwrap_or_default();
        self.lines.push(String::from(rule).repeat(width.min(COLUMNS)));
        self.blank();
    }

    fn blank(&mut self) {
        self.lines.push(String::new());
    }

    fn wrap(&mut self, text: &str, first: &str, others: &str) {
        let mut line = first.to_owned();
        let mut is_empty = true;
        for word in text.split(' ').flat_map(|word| pieces(word, COLUMNS - others.width())) {
            if !is_empty && line.width() + 1 + word.width() > COLUMNS {
                self.lines.push(std::mem::replace(&mut line, others.to_owned()));
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        self.lines.push(line.trim_end_matches(' ').to_owned());
    }
}

/// A word, cut where it is wider than a line. Signs without a width stay with what they belong to.
fn pieces(word: &str, columns: usize) -> Vec<&str> {
    if word.contains("://") || word.contains('@') {
        return vec![word];
    }
    let mut pieces = Vec::new();
    let (mut start, mut width, mut joined) = (0, 0, false);
    for (at, c) in word.char_indices() {
        let own = c.width().unwrap_or(0);
        if width + own > columns && own > 0 && !joined {
            pieces.push(&word[start..at]);
            (start, width) = (at, 0);
        }
        width += own;
        joined = c == '\u{200d}';
    }
    pieces.push(&word[start..]);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(text: &str, first: &str, others: &str) -> Vec<String> {
        let mut page = Page::default();
        page.wrap(text, first, others);
        page.lines
    }

    #[test]
    fn lines_break_at_spaces_only_and_by_columns() {
        let word = "ä".repeat(35);
        assert_eq!(
            wrapped(&format!("{word} {word} x"), "", ""),
            [format!("{word} {word}"), "x".into()]
        );
        // With the non-breaking space it is one word, of 71 columns.
        let one = format!("{word}\u{a0}{word}");
        assert_eq!(wrapped(&format!("x {one}"), "", ""), ["x".to_owned(), one]);
        // 36 signs of two columns each fill a line.
        let wide = "株".repeat(36);
        assert_eq!(wrapped(&format!("{wide} 株"), "", ""), [wide, "株".to_owned()]);
    }

    #[test]
    fn a_word_that_fits_no_line_is_cut_but_a_link_is_not() {
        let lines = wrapped(&"x".repeat(150), "- ", "  ");
        assert_eq!(lines.iter().map(|line| line.width()).collect::<Vec<_>>(), [72, 72, 12]);
        let marked = "e\u{301}".repeat(73);
        assert_eq!(wrapped(&marked, "", ""), ["e\u{301}".repeat(72), "e\u{301}".to_owned()]);
        let link = format!("https://{}", "x".repeat(100));
        assert_eq!(wrapped(&format!("see {link}"), "", ""), ["see".to_owned(), link]);
    }
}
