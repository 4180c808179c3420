//! That each language tells every fact, with the right numbers, dates and times.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;

use jiff::SignedDuration;
use serde_json::Value;
use support::{READERS, at, days, full, instance, least, notice, paragraph, row};
use wavegate_notice::{Destination, Draft, Language, Notice, NoticeError};

fn json(draft: &Draft) -> Value {
    serde_json::from_str(&notice(draft).render_json()).unwrap()
}

/// Topic and text of everything that the letter says.
fn said(draft: &Draft) -> Vec<(String, String)> {
    let letter = &json(draft)["letter"];
    let sections = letter["sections"].as_array().unwrap().iter();
    let parts = sections.flat_map(|section| section["parts"].as_array().unwrap());
    parts
        .chain(letter["questions"]["entries"].as_array().unwrap())
        .map(|part| {
            let topic = part["topic"].as_str().unwrap().to_owned();
            let texts = ["text", "value", "question", "answer"].map(|key| part[key].as_str());
            let items = part["items"].as_array().into_iter().flatten();
            let items = items.map(|item| item["text"].as_str());
            let texts: Vec<&str> = texts.into_iter().chain(items).flatten().collect();
            (topic, texts.join(" "))
        })
        .collect()
}

const TOPICS: [&str; 14] = [
    "what",
    "why",
    "affected",
    "when",
    "notice",
    "duration",
    "effect",
    "mandatory",
    "customers",
    "downtime",
    "action",
    "test",
    "change",
    "further",
];

#[test]
fn every_fact_is_told_in_every_language() {
    for (language, zone) in READERS {
        let draft = full(language, zone);
        let said = said(&draft);
        let text = notice(&draft).render_text();
        // Text wraps, HTML does not.
        let html = notice(&draft).render_html();
        for topic in TOPICS {
            let words: Vec<&String> =
                said.iter().filter(|(of, _)| of == topic).map(|(_, words)| words).collect();
            assert!(!words.is_empty(), "{language}: nothing about {topic}");
            assert!(words.iter().all(|words| words.len() >= 2), "{language}: {topic}: {words:?}");
        }
        let questions = json(&draft)["letter"]["questions"]["entries"].as_array().unwrap().len();
        assert_eq!(questions, 7, "{language}");
        for told in ["acme-prod-1", "acme-prod-2", "campaign-classic", "https://care.example.net/"]
        {
            assert!(text.contains(told) && html.contains(told), "{language}: {told}");
        }
        for told in ["Ada Löfgren", "Example Mail", "prod-01", "Sending infrastructure upgrade"] {
            assert!(text.contains(told) && html.contains(told), "{language}: {told}");
        }
    }
}

/// A text that was forgotten in translation would be the same in two languages.
#[test]
fn no_sentence_is_shared_between_languages() {
    let mut seen = BTreeSet::new();
    for (language, _) in READERS {
        // One zone, so that equal values are equal; facts without words are left out.
        let mut own = BTreeSet::new();
        for draft in [full(language, "Europe/Paris"), least(language)] {
            let sentences = said(&draft).into_iter().map(|(_, words)| words);
            own.extend(sentences.filter(|words| words.split(' ').count() > 4));
        }
        for sentence in own {
            assert!(seen.insert(sentence.clone()), "{language}: {sentence}");
        }
    }
    assert!(seen.len() > 6 * 15, "{}", seen.len());
}

#[test]
fn the_destination_is_named_only_where_it_may_be() {
    let cloud = Words(&["cloud", "nuvem", "moln"]);
    for (language, zone) in READERS {
        let mut draft = full(language, zone);
        assert!(cloud.is_in(&notice(&draft).render_text()), "{language}");
        draft.program.destination = Destination::Unnamed;
        for format in [notice(&draft).render_text(), notice(&draft).calendar()] {
            assert!(!cloud.is_in(&format), "{language}");
        }
    }
}

struct Words(&'static [&'static str]);

impl Words {
    fn is_in(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.0.iter().any(|word| text.contains(word))
    }
}

#[test]
fn one_instance_and_several() {
    for (language, one, several) in [
        ("en", "Yes. This instance is part", "Yes. These 3 instances are part"),
        ("fr", "Oui. L’instance suivante est", "Oui. Les 3 instances suivantes sont"),
        ("de", "Ja. Diese Instanz gehört", "Ja. Diese 3 Instanzen gehören"),
        ("it", "Sì. Questa istanza fa", "Sì. Queste 3 istanze fanno"),
        ("pt-BR", "Sim. Esta instância faz", "Sim. Estas 3 instâncias fazem"),
        ("sv", "Ja. Den här instansen ingår", "Ja. De här 3 instanserna ingår"),
    ] {
        let mut draft = least(language);
        assert!(notice(&draft).render_text().contains(one), "{language}");
        draft.instances = ["a", "b", "c"].map(|name| instance(name, "", "")).to_vec();
        assert!(notice(&draft).render_text().contains(several), "{language}");
    }
}

#[test]
fn durations_are_counted_in_words() {
    let said = |language: &str, minutes: i64| {
        let mut draft = full(language, "UTC");
        draft.wave.estimate = Some(SignedDuration::from_mins(minutes));
        row(&draft, 1)
    };
    for (language, expected) in [
        ("en", ["1 minute", "1 hour", "1 hour 5 minutes", "2 hours 1 minute", "1 day 30 minutes"]),
        (
            "fr",
            [
                "1 minute",
                "1 heure",
                "1 heure et 5 minutes",
                "2 heures et 1 minute",
                "1 jour et 30 minutes",
            ],
        ),
        (
            "de",
            [
                "1 Minute",
                "1 Stunde",
                "1 Stunde 5 Minuten",
                "2 Stunden 1 Minute",
                "1 Tag 30 Minuten",
            ],
        ),
        (
            "it",
            ["1 minuto", "1 ora", "1 ora e 5 minuti", "2 ore e 1 minuto", "1 giorno e 30 minuti"],
        ),
        (
            "pt-BR",
            [
                "1 minuto",
                "1 hora",
                "1 hora e 5 minutos",
                "2 horas e 1 minuto",
                "1 dia e 30 minutos",
            ],
        ),
        (
            "sv",
            [
                "1 minut",
                "1 timme",
                "1 timme och 5 minuter",
                "2 timmar och 1 minut",
                "1 dag och 30 minuter",
            ],
        ),
    ] {
        let is = [1, 60, 65, 121, 1470].map(|minutes| said(language, minutes));
        assert_eq!(is, expected, "{language}");
    }
}

#[test]
fn a_begun_minute_counts() {
    let mut draft = full("en", "UTC");
    for (seconds, said) in [(1, "1 minute"), (60, "1 minute"), (61, "2 minutes")] {
        draft.wave.estimate = Some(SignedDuration::from_secs(seconds));
        assert_eq!(row(&draft, 1), said);
    }
    draft.wave.estimate = Some(SignedDuration::new(60, 1));
    assert_eq!(row(&draft, 1), "2 minutes");
}

fn window(language: &str, zone: &str, opens: &str, closes: &str) -> Draft {
    let mut draft = full(language, zone);
    (draft.wave.opens, draft.wave.closes) = (at(opens), at(closes));
    draft
}

#[test]
fn a_window_within_a_day() {
    for (language, zone, said) in [
        ("en", "Europe/Paris", "Tuesday, 20 January 2026, from 06:00 to 06:45 (CET, UTC+1)"),
        ("de", "Europe/Berlin", "Dienstag, 20. Januar 2026, 06:00 bis 06:45 Uhr (MEZ, UTC+1)"),
        ("fr", "Europe/Paris", "mardi 20 janvier 2026, de 06 h 00 à 06 h 45 (CET, UTC+1)"),
        (
            "it",
            "Europe/Rome",
            "martedì 20 gennaio 2026, dalle ore 06:00 alle ore 06:45 (CET, UTC+1)",
        ),
        (
            "pt-BR",
            "America/Sao_Paulo",
            "terça-feira, 20 de janeiro de 2026, das 2h00 às 2h45 (horário de Brasília, UTC−3)",
        ),
        ("sv", "Europe/Stockholm", "tisdag 20 januari 2026 kl. 06.00–06.45 (CET, UTC+1)"),
    ] {
        let draft = window(language, zone, "2026-01-20T05:00:00Z", "2026-01-20T05:45:00Z");
        assert_eq!(row(&draft, 0), said);
    }
}

#[test]
fn a_window_over_midnight() {
    for (language, zone, said) in [
        (
            "en",
            "Europe/Paris",
            "from Saturday, 31 January 2026, 23:40 to Sunday, 1 February 2026, 00:25 (CET, UTC+1)",
        ),
        (
            "de",
            "Europe/Berlin",
            "Samstag, 31. Januar 2026, 23:40 Uhr, bis Sonntag, 1. Februar 2026, 00:25 Uhr (MEZ, UTC+1)",
        ),
        (
            "fr",
            "Europe/Paris",
            "du samedi 31 janvier 2026 à 23 h 40 au dimanche 1er février 2026 à 00 h 25 (CET, UTC+1)",
        ),
        (
            "it",
            "Europe/Rome",
            "da sabato 31 gennaio 2026, ore 23:40, a domenica 1º febbraio 2026, ore 00:25 (CET, UTC+1)",
        ),
        (
            "pt-BR",
            "Europe/Lisbon",
            "sábado, 31 de janeiro de 2026, das 22h40 às 23h25 (WET, UTC+0)",
        ),
        (
            "pt-BR",
            "Europe/Paris",
            "de sábado, 31 de janeiro de 2026, às 23h40, a domingo, 1º de fevereiro de 2026, à 0h25 (CET, UTC+1)",
        ),
        (
            "sv",
            "Europe/Stockholm",
            "från lördag 31 januari 2026 kl. 23.40 till söndag 1 februari 2026 kl. 00.25 (CET, UTC+1)",
        ),
    ] {
        let draft = window(language, zone, "2026-01-31T22:40:00Z", "2026-01-31T23:25:00Z");
        assert_eq!(row(&draft, 0), said);
    }
    // In the reader's zone it is over midnight, in UTC it is not.
    let draft = window("en", "Europe/Paris", "2026-01-31T22:40:00Z", "2026-01-31T23:25:00Z");
    assert_eq!(row(&draft, 1), "Saturday, 31 January 2026, from 22:40 to 23:25");
    assert!(notice(&draft).subject().contains("31"), "the day on which it begins");
}

/// Clocks go from 02:00 to 03:00 at 01:00 UTC.
#[test]
fn a_window_in_which_summer_begins() {
    for (language, zone, said) in [
        (
            "en",
            "Europe/Paris",
            "Sunday, 29 March 2026, from 01:30 (CET, UTC+1) to 03:15 (CEST, UTC+2)",
        ),
        (
            "de",
            "Europe/Berlin",
            "Sonntag, 29. März 2026, 01:30 Uhr (MEZ, UTC+1) bis 03:15 Uhr (MESZ, UTC+2)",
        ),
        (
            "fr",
            "Europe/Paris",
            "dimanche 29 mars 2026, de 01 h 30 (CET, UTC+1) à 03 h 15 (CEST, UTC+2)",
        ),
        (
            "it",
            "Europe/Rome",
            "domenica 29 marzo 2026, dalle ore 01:30 (CET, UTC+1) alle ore 03:15 (CEST, UTC+2)",
        ),
        (
            "pt-BR",
            "Europe/Lisbon",
            "domingo, 29 de março de 2026, da 0h30 (WET, UTC+0) às 2h15 (WEST, UTC+1)",
        ),
        (
            "sv",
            "Europe/Stockholm",
            "söndag 29 mars 2026 från kl. 01.30 (CET, UTC+1) till kl. 03.15 (CEST, UTC+2)",
        ),
    ] {
        let draft = window(language, zone, "2026-03-29T00:30:00Z", "2026-03-29T01:15:00Z");
        assert_eq!(row(&draft, 0), said);
        // That it is 45 minutes for all that is said apart.
        let minutes = said_of(&draft, "when").into_iter().find(|said| said.contains("45\u{a0}min"));
        let minutes =
            minutes.or(said_of(&draft, "when").into_iter().find(|s| s.contains("45\u{a0}Min")));
        assert!(minutes.is_some(), "{language}");
    }
}

fn said_of(draft: &Draft, topic: &str) -> Vec<String> {
    said(draft).into_iter().filter(|(of, _)| of == topic).map(|(_, words)| words).collect()
}

/// Clocks go from 03:00 back to 02:00 at 01:00 UTC: by the clock it ends before it begins.
#[test]
fn a_window_in_which_summer_ends() {
    let draft = window("de", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T01:15:00Z");
    assert_eq!(
        row(&draft, 0),
        "Sonntag, 25. Oktober 2026, 02:30 Uhr (MESZ, UTC+2) bis 02:15 Uhr (MEZ, UTC+1)"
    );
    assert_eq!(row(&draft, 1), "Sonntag, 25. Oktober 2026, 00:30 bis 01:15 Uhr");
    let text = notice(&draft).render_text();
    assert_eq!(
        paragraph(&text, "Während des Zeitfensters werden"),
        "Während des Zeitfensters werden die Uhren umgestellt; es dauert dennoch 45 Minuten."
    );
    let draft = window("de", "Europe/Berlin", "2026-10-26T00:30:00Z", "2026-10-26T01:15:00Z");
    assert!(!notice(&draft).render_text().contains("Uhren umgestellt"));
}

/// Midnight and a change of clocks at once: Lebanon changes at midnight.
#[test]
fn a_window_over_midnight_in_which_clocks_change() {
    let draft = window("en", "Asia/Beirut", "2026-03-28T21:30:00Z", "2026-03-28T22:15:00Z");
    assert_eq!(
        row(&draft, 0),
        "from Saturday, 28 March 2026, 23:30 (EET, UTC+2) to Sunday, 29 March 2026, 01:15 (EEST, UTC+3)"
    );
}

#[test]
fn zones_without_letters_and_with_minutes() {
    let said = |zone| {
        let said = row(&full("en", zone), 0);
        said.split_once("from ").unwrap().1.to_owned()
    };
    assert_eq!(said("Asia/Kolkata"), "11:30 to 12:15 (IST, UTC+5:30)");
    assert_eq!(said("Asia/Kathmandu"), "11:45 to 12:30 (UTC+5:45)");
    assert_eq!(said("America/St_Johns"), "02:30 to 03:15 (NST, UTC−3:30)");
    assert_eq!(said("Etc/UTC"), "06:00 to 06:45 UTC");
    assert_eq!(said("europe/paris"), "07:00 to 07:45 (CET, UTC+1)");
}

/// Who reads UTC is told it once.
#[test]
fn utc_is_said_once() {
    let text = notice(&full("en", "UTC")).render_text();
    assert_eq!(text.matches("06:00").count(), 1, "{text}");
    assert_eq!(notice(&full("en", "Europe/Paris")).render_text().matches("06:00").count(), 1);
}

#[test]
fn seconds_are_said_where_there_are_any() {
    for (language, said) in [
        ("en", "Tuesday, 20 January 2026, from 06:00:30 to 06:45 UTC"),
        ("fr", "mardi 20 janvier 2026, de 06 h 00 min 30 s à 06 h 45 UTC"),
        ("pt-BR", "terça-feira, 20 de janeiro de 2026, das 6h00min30s às 6h45 UTC"),
        ("sv", "tisdag 20 januari 2026 kl. 06.00.30–06.45 UTC"),
    ] {
        let draft = window(language, "UTC", "2026-01-20T06:00:30Z", "2026-01-20T06:45:00Z");
        assert_eq!(row(&draft, 0), said);
    }
}

#[test]
fn stages_begin_with_a_month_or_a_day() {
    for (language, said) in [
        ("en", ["from August 2023", "from 8 November 2023"]),
        ("fr", ["à partir d’août 2023", "à partir du 8 novembre 2023"]),
        ("de", ["ab August 2023", "ab dem 8. November 2023"]),
        ("it", ["da agosto 2023", "dall’8 novembre 2023"]),
        ("pt-BR", ["a partir de agosto de 2023", "a partir de 8 de novembro de 2023"]),
        ("sv", ["från augusti 2023", "från den 8 november 2023"]),
    ] {
        // A zone in which the first of August has not come yet at midnight UTC.
        let mut draft = full(language, "America/Sao_Paulo");
        draft.stages[0].earliest = at("2023-08-01T00:00:00Z");
        draft.stages[1].earliest = at("2023-11-08T00:00:00Z");
        let stages = said_of(&draft, "when").pop().unwrap().replace('\u{a0}', " ");
        for said in said {
            assert!(stages.contains(said), "{language}: {stages}");
        }
    }
}

#[test]
fn a_late_notice_does_not_claim_to_be_early() {
    let mut draft = full("en", "UTC");
    let ahead = "at least 30\u{a0}days in advance. This";
    let text = |draft: &Draft| said_of(draft, "notice").join("|");
    assert!(text(&draft).contains(ahead));
    draft.wave.announced = Some(at("2025-12-21T06:00:00Z"));
    assert!(text(&draft).contains(ahead), "30 days to the second");
    draft.wave.announced = Some(at("2025-12-21T06:00:01Z"));
    assert_eq!(text(&draft), "This upgrade was announced on 21\u{a0}December 2025.");
    // Without an announcement it is this notice that counts.
    draft.wave.announced = None;
    assert!(text(&draft).contains("at least 30\u{a0}days"));
    draft.issued = at("2026-01-10T00:00:00Z");
    assert_eq!(text(&draft), "");
}

#[test]
fn environments_have_words_or_are_quoted() {
    for (language, name, subject) in [
        ("de", "production", "(Produktion)"),
        ("de", "PROD", "(Produktion)"),
        ("fr", "stage", "(Préproduction)"),
        ("it", "dev", "(Sviluppo)"),
        ("pt-BR", "staging", "(Homologação)"),
        ("sv", "development", "(Utveckling)"),
        ("en", "qa 7", "(qa 7)"),
    ] {
        let mut draft = full(language, "UTC");
        draft.wave.environment = name.into();
        let is = notice(&draft).subject();
        assert!(is.ends_with(subject), "{is}");
    }
    for (language, quoted) in [
        ("en", "“qa”"),
        ("fr", "«\u{a0}qa\u{a0}»"),
        ("de", "„qa“"),
        ("it", "«qa»"),
        ("pt-BR", "“qa”"),
        ("sv", "”qa”"),
    ] {
        let mut draft = full(language, "UTC");
        draft.wave.environment = "qa".into();
        assert!(notice(&draft).render_html().contains(quoted), "{language}");
    }
}

#[test]
fn french_spaces_do_not_break() {
    for draft in [full("fr", "Europe/Paris"), least("fr")] {
        let notice = notice(&draft);
        for words in
            said(&draft).iter().map(|(_, words)| words.as_str()).chain([&*notice.subject()])
        {
            for sign in [" :", " ;", " ?", " !", "« ", " »"] {
                assert!(!words.contains(sign), "{words}");
            }
            assert!(!words.contains('\''), "{words}");
        }
    }
}

#[test]
fn the_facts_of_the_json() {
    let json = json(&full("pt-BR", "America/Sao_Paulo"));
    for (key, value) in [
        ("language", "pt-BR"),
        ("wave", "prod-01"),
        ("environment", "production"),
        ("opens", "2026-01-20T06:00:00Z"),
        ("closes", "2026-01-20T06:45:00Z"),
        ("opens_local", "2026-01-20T03:00:00-03:00"),
        ("closes_local", "2026-01-20T03:45:00-03:00"),
        ("time_zone", "America/Sao_Paulo"),
        ("destination", "cloud"),
        ("announced", "2025-12-15T09:00:00Z"),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    assert_eq!(json["window_seconds"], 2700);
    assert_eq!(json["estimate_seconds"], 2400);
    assert_eq!(json["notice_seconds"], 30 * 86_400);
    assert_eq!(json["instances"][1]["hosting"], "hybrid");
}

#[test]
fn what_is_wrong_is_said() {
    let wrong = |change: fn(&mut Draft)| {
        let mut draft = full("en", "UTC");
        change(&mut draft);
        Notice::new(&draft).unwrap_err()
    };
    assert_eq!(
        wrong(|d| d.program.provider = " \r\n".into()),
        NoticeError::Missing("the program's provider")
    );
    assert_eq!(wrong(|d| d.wave.id = String::new()), NoticeError::Missing("the wave's id"));
    assert_eq!(
        wrong(|d| d.instances[1].name = "\0".into()),
        NoticeError::Missing("an instance's name")
    );
    assert_eq!(wrong(|d| d.instances.clear()), NoticeError::NoInstances);
    assert_eq!(
        wrong(|d| d.contact.language = "ja".into()).to_string(),
        "notices are not written in \"ja\"; there are en, fr, de, it, pt-BR, sv"
    );
    assert_eq!(
        wrong(|d| d.contact.time_zone = "Europe/Atlantis".into()).to_string(),
        "unknown time zone \"Europe/Atlantis\"; give an IANA name, such as \"Europe/Paris\" or \"UTC\""
    );
    assert_eq!(
        wrong(|d| d.wave.closes = d.wave.opens).to_string(),
        "the window closes at 2026-01-20T06:00:00Z, which is not after 2026-01-20T06:00:00Z, when it opens"
    );
    assert_eq!(
        wrong(|d| d.wave.estimate = Some(SignedDuration::ZERO)),
        NoticeError::Duration("the estimated duration")
    );
    assert_eq!(
        wrong(|d| d.wave.notice = Some(SignedDuration::MAX)),
        NoticeError::Duration("the notice period")
    );
    assert_eq!(
        wrong(|d| d.stages[0].notice = Some(days(-1))),
        NoticeError::Duration("the notice period of an environment")
    );
    assert!(matches!(
        wrong(|d| d.wave.opens = jiff::Timestamp::MIN),
        NoticeError::Time { what: "opens", .. }
    ));
    assert!(matches!(
        wrong(|d| d.issued = jiff::Timestamp::MIN),
        NoticeError::Time { what: "issued", .. }
    ));
    for (what, error) in [
        ("sender", wrong(|d| d.program.sender = Some("a@b\r\nBcc: c@d".into()))),
        ("reply_to", wrong(|d| d.program.reply_to = Some(String::new()))),
        ("the contact's email", wrong(|d| d.contact.email = "ada".into())),
    ] {
        assert!(matches!(error, NoticeError::Address { what: is, .. } if is == what), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn instances_up_to_the_limit() {
    let mut draft = full("en", "UTC");
    let limit = wavegate_notice::INSTANCE_LIMIT;
    draft.instances = (0..limit).map(|n| instance(&format!("i{n}"), "", "")).collect();
    assert!(notice(&draft).render_text().contains("- i999\n"));
    draft.instances.push(instance("one", "", ""));
    assert_eq!(Notice::new(&draft).unwrap_err(), NoticeError::TooManyInstances(limit + 1));
}

#[test]
fn each_language_is_tested() {
    let tags: Vec<&str> = Language::ALL.iter().map(|language| language.tag()).collect();
    assert_eq!(tags, READERS.map(|(language, _)| language));
}
