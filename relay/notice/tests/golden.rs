//! What customers read, word for word: each language in each format, as files to read and to
//! compare. `BLESS=1` writes them anew.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{fs, path::Path};

use support::{MESSAGE_ID, READERS, full, least, notice};

fn compare(name: &str, is: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, is).unwrap();
        return;
    }
    let was = fs::read_to_string(&path).unwrap_or_default();
    if is != was {
        let line = is.lines().zip(was.lines()).find(|(is, was)| is != was);
        panic!("{name} differs (BLESS=1 writes it anew), first at (is, was): {line:#?}");
    }
}

#[test]
fn every_language_in_every_format() {
    for (language, zone) in READERS {
        let notice = notice(&full(language, zone));
        compare(&format!("{language}.txt"), &notice.render_text());
        compare(&format!("{language}.html"), &notice.render_html());
        compare(&format!("{language}.json"), &notice.render_json());
        compare(&format!("{language}.ics"), &notice.calendar());
        let mail = String::from_utf8(notice.render_eml(MESSAGE_ID).unwrap()).unwrap();
        compare(&format!("{language}.eml"), &mail);
    }
}

/// One instance, no environment, no estimate, over midnight, in UTC, for the second time.
#[test]
fn every_language_with_the_least() {
    for (language, _) in READERS {
        compare(&format!("{language}.least.txt"), &notice(&least(language)).render_text());
    }
}
