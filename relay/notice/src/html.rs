//! The notice as one page that mail programs show well: tables and inline styles, since many drop
//! all others; no scripts, pictures or anything else from outside. Light and dark: who honours the
//! style sheet sees either, who does not sees light.

use crate::{
    Notice,
    letter::{Block, Item, Letter, Link, Part, Question, Questions, Section},
};

impl Notice {
    /// The notice as a self-contained HTML page, UTF-8, lines end with LF.
    pub fn render_html(&self) -> String {
        render(&Letter::of(self), self)
    }
}

const FONT: &str =
    "font-family:-apple-system,BlinkMacSystemFont,'Segoe UI',Roboto,Helvetica,Arial,sans-serif";
const TEXT: &str = "margin:0 0 12px;font-size:16px;line-height:24px;color:#1f2933";

/// Dark colours override the inline ones, hence `!important`.
const STYLE: &str = "\
:root{color-scheme:light dark;supported-color-schemes:light dark}
body{margin:0;padding:0;-webkit-text-size-adjust:100%}
a{color:#0b5cad}
@media (max-width:560px){.pad{padding-left:20px!important;padding-right:20px!important}\
.label,.value{display:block!important;width:auto!important}.label{padding-bottom:0!important}\
.value{padding-top:0!important;padding-left:16px!important}}
@media (prefers-color-scheme:dark){.page{background:#14181d!important}\
.card{background:#1e242b!important;border-color:#323b45!important}\
.text,.value{color:#e4e9ee!important}.title{color:#f5f8fa!important}\
.label,.muted{color:#9fadba!important}.box{background:#26303a!important;border-color:#4a90d9!important}\
.line{border-color:#323b45!important}.link{color:#7cb8f5!important}}
";

pub(crate) fn render(letter: &Letter, notice: &Notice) -> String {
    let mut body = String::new();
    let class = |name: &str, tag: &str, style: &str, text: &str| {
        format!("<{tag} class=\"{name}\" style=\"{style}\">{}</{tag}>\n", escaped(text))
    };
    body.push_str(&class("muted", "p", MUTED, notice.provider.as_str()));
    body.push_str(&class("title", "h1", TITLE, &letter.subject));
    body.push_str(&paragraph(&letter.greeting));
    body.extend(letter.lead.iter().map(|text| paragraph(text)));
    body.extend(letter.sections.iter().map(section));
    body.push_str(&questions(&letter.questions));
    body.push_str(&format!(
        "<p class=\"text\" style=\"{TEXT};margin-top:28px\">{}<br>\n{}</p>\n",
        escaped(&letter.closing),
        escaped(&letter.signature)
    ));
    let remarks: Vec<String> = letter.remarks.iter().map(|text| escaped(text)).collect();
    let footer = format!(
        "<p class=\"muted\" style=\"margin:0;font-size:13px;line-height:20px;color:#5f6c78\">{}</p>",
        remarks.join("<br>\n")
    );
    frame(notice.language.tag(), letter, &body, &footer)
}

const MUTED: &str = "margin:0 0 4px;font-size:14px;line-height:20px;color:#5f6c78";
const TITLE: &str = "margin:0 0 20px;font-size:24px;line-height:31px;font-weight:600;color:#12202e";
const HEADING: &str =
    "margin:28px 0 10px;font-size:18px;line-height:25px;font-weight:600;color:#12202e";

fn frame(language: &str, letter: &Letter, body: &str, footer: &str) -> String {
    let title = escaped(&letter.subject);
    let preview = escaped(letter.lead.first().map_or("", String::as_str));
    format!(
        "<!DOCTYPE html>
<html lang=\"{language}\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"color-scheme\" content=\"light dark\">
<meta name=\"supported-color-schemes\" content=\"light dark\">
<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body class=\"page\" style=\"margin:0;padding:0;background:#eef1f4\">
<div style=\"display:none;max-height:0;overflow:hidden\">{preview}</div>
<table role=\"presentation\" class=\"page\" width=\"100%\" cellpadding=\"0\" cellspacing=\"0\" border=\"0\" style=\"background:#eef1f4\">
<tr><td align=\"center\" style=\"padding:24px 8px\">
<table role=\"presentation\" class=\"card\" width=\"640\" cellpadding=\"0\" cellspacing=\"0\" border=\"0\" style=\"width:100%;max-width:640px;background:#ffffff;border:1px solid #d9dfe5;border-radius:8px;text-align:left;{FONT}\">
<tr><td class=\"pad\" style=\"padding:32px 40px 28px;overflow-wrap:anywhere;word-break:break-word\">
{body}</td></tr>
<tr><td class=\"pad line\" style=\"padding:16px 40px;border-top:1px solid #d9dfe5\">
{footer}
</td></tr>
</table>
</td></tr>
</table>
</body>
</html>
"
    )
}

fn section(Section { heading, parts }: &Section) -> String {
    let mut html = format!("<h2 class=\"title\" style=\"{HEADING}\">{}</h2>\n", escaped(heading));
    let mut facts = String::new();
    for Part { block, .. } in parts {
        if !matches!(block, Block::Fact { .. }) {
            html.push_str(&table(&std::mem::take(&mut facts)));
        }
        match block {
            Block::Fact { label, value } => facts.push_str(&row(label, value)),
            Block::Paragraph { text } => html.push_str(&paragraph(text)),
            Block::List { items } => html.push_str(&list(items)),
        }
    }
    html.push_str(&table(&facts));
    html
}

fn table(rows: &str) -> String {
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<table class=\"box\" width=\"100%\" cellpadding=\"0\" cellspacing=\"0\" border=\"0\" style=\"margin:0 0 16px;padding:6px 0;background:#f3f7fb;border-left:4px solid #0b5cad;border-radius:4px\">\n{rows}</table>\n"
    )
}

fn row(label: &str, value: &str) -> String {
    format!(
        "<tr><th class=\"label\" scope=\"row\" align=\"left\" valign=\"top\" width=\"160\" style=\"padding:6px 8px 6px 16px;width:160px;font-size:14px;line-height:22px;font-weight:400;color:#5f6c78\">{}</th><td class=\"value\" valign=\"top\" style=\"padding:6px 16px 6px 8px;font-size:15px;line-height:22px;color:#1f2933\">{}</td></tr>\n",
        escaped(label),
        escaped(value)
    )
}

fn questions(Questions { heading, entries }: &Questions) -> String {
    let mut html = format!("<h2 class=\"title\" style=\"{HEADING}\">{}</h2>\n", escaped(heading));
    html.extend(entries.iter().map(question));
    html
}

fn question(Question { question, answer, items, link, .. }: &Question) -> String {
    let link = link.as_ref().map_or_else(String::new, |link| format!(" {}", anchor(link)));
    let mut html = format!(
        "<h3 class=\"title\" style=\"margin:16px 0 4px;font-size:16px;line-height:24px;font-weight:600;color:#12202e\">{}</h3>\n<p class=\"text\" style=\"{TEXT}\">{}{link}</p>\n",
        escaped(question),
        escaped(answer)
    );
    if !items.is_empty() {
        html.push_str(&list(items));
    }
    html
}

fn anchor(Link { text, href }: &Link) -> String {
    format!(
        "<a class=\"link\" href=\"{}\" style=\"color:#0b5cad\">{}</a>",
        escaped(href),
        escaped(text)
    )
}

fn paragraph(text: &str) -> String {
    format!("<p class=\"text\" style=\"{TEXT}\">{}</p>\n", escaped(text))
}

fn list(items: &[Item]) -> String {
    let items: String = items.iter().map(item).collect();
    format!("<ul style=\"margin:0 0 12px;padding:0 0 0 22px\">\n{items}</ul>\n")
}

/// A name may be written from right to left; `bdi` keeps that to itself.
fn item(Item { text, detail }: &Item) -> String {
    let style = "margin:0 0 6px;font-size:16px;line-height:24px;color:#1f2933";
    let text = escaped(text);
    let content = match detail {
        Some(detail) => format!(
            "<strong><bdi>{text}</bdi></strong> <span class=\"muted\" style=\"color:#5f6c78\">({})</span>",
            escaped(detail)
        ),
        None => format!("<bdi>{text}</bdi>"),
    };
    format!("<li class=\"text\" style=\"{style}\">{content}</li>\n")
}

/// For text and for quoted attributes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
