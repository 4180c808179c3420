//! German.

use jiff::civil::Date;

use super::{
    Answered, Counted, Dates, Environment, EnvironmentWords, Headings, Labels, Questions, Texts,
    clock, month, weekday,
};
use crate::{
    Destination,
    when::{Range, Units},
};

pub(super) static TEXTS: Texts = Texts {
    dates: Dates {
        day,
        since,
        within_a_day,
        over_days,
        units: Units {
            day: ("Tag", "Tage"),
            hour: ("Stunde", "Stunden"),
            minute: ("Minute", "Minuten"),
            and: " ",
        },
        zone_name,
    },
    labels: Labels {
        local_time: "Ihre Ortszeit",
        utc: "UTC",
        estimate: "Voraussichtliche Dauer",
        window: "Länge des Zeitfensters",
        environment: "Umgebung",
        program: "Programm",
        reference: "Referenz",
        time_zone: "Zeitzone",
    },
    headings: Headings {
        when: "Wann",
        what: "Was wir umstellen und warum",
        affected: "Sind Sie betroffen?",
        effect: "Was Sie erwartet",
        questions: "Fragen und Antworten",
    },
    questions: Questions {
        mandatory: Answered {
            question: "Ist die Umstellung verpflichtend?",
            answer: "Ja. Ohne die Versandinfrastruktur können Ihre Instanzen keine E-Mails \
                     versenden; deshalb kann keine von der Umstellung ausgenommen werden.",
        },
        customers: Answered {
            question: "Welche Kunden werden umgestellt?",
            answer: "Umgestellt werden die Umgebungen aller betroffenen Kunden.",
        },
        scope: "Betroffene Produkte:",
        downtime: Answered {
            question: "Mit welcher Ausfallzeit ist zu rechnen?",
            answer: |duration| {
                format!(
                    "Der E-Mail-Versand ist voraussichtlich etwa {duration} lang unterbrochen. Die \
                     Dauer hängt davon ab, wie viele Instanzen gemeinsam umgestellt werden."
                )
            },
        },
        action: Answered {
            question: "Muss ich etwas tun?",
            answer: "Nein. Wir führen die Umstellung durch; sie läuft automatisch ab.",
        },
        test: Answered {
            question: "Muss ich etwas testen?",
            answer: "Nein, Tests Ihrerseits sind nicht vorgesehen. Sollte Ihnen ein Problem \
                     auffallen, wenden Sie sich bitte an unseren Kundenservice:",
        },
        change: Answered {
            question: "Lässt sich der Termin verschieben?",
            answer: "Nein. Das würde die Umstellung anderer Kunden im selben Zeitfenster \
                     beeinträchtigen.",
        },
        further: Answered {
            question: "An wen kann ich mich mit weiteren Fragen wenden?",
            answer: "Unser Kundenservice hilft Ihnen gern weiter:",
        },
    },
    environment,
    colon: ":",

    subject: |day| format!("Umstellung der E-Mail-Versandinfrastruktur am {day}"),
    changed: |subject| format!("Geändert: {subject}"),
    greeting: |name| match name {
        Some(name) => format!("Guten Tag {name},"),
        None => "Guten Tag,".to_owned(),
    },
    // After the comma of the greeting a small letter begins.
    lead: |lead| {
        format!(
            "am {}, dem {}, stellen wir den Dienst um, der die E-Mails {} versendet. Im unten \
             genannten Zeitfenster ist kein E-Mail-Versand möglich. Sie müssen nichts tun.",
            weekday(lead.date, &WEEKDAYS),
            day(lead.date),
            lead.yours
        )
    },
    replaces: "Diese Mitteilung ersetzt die frühere zur selben Umstellung.",
    what: |destination| match destination {
        Destination::Cloud => {
            "Wir verlegen unsere Versandinfrastruktur, also den Dienst, der Ihre E-Mails zustellt, \
             aus unseren Rechenzentren in eine öffentliche Cloud."
        }
        Destination::Unnamed => {
            "Wir modernisieren unsere Versandinfrastruktur, also den Dienst, der Ihre E-Mails \
             zustellt."
        }
    },
    why: "Die neue Infrastruktur bietet höhere Qualität und Zuverlässigkeit, Hochverfügbarkeit und \
          optimalen Durchsatz, und sie wächst mit Ihrem Bedarf.",
    affected: Counted {
        one: "Ja. Diese Instanz gehört zur Umstellung:",
        many: |count| format!("Ja. Diese {count} Instanzen gehören zur Umstellung:"),
    },
    clocks_change: |length| {
        format!("Während des Zeitfensters werden die Uhren umgestellt; es dauert dennoch {length}.")
    },
    announced_ahead: |environments, period| {
        format!("Umstellungen von {environments} kündigen wir mindestens {period} im Voraus an.")
    },
    announced_on: |day| format!("Diese Umstellung wurde am {day} angekündigt."),
    stages: "Zeitplan des gesamten Programms:",
    stage: |environments, since, period| match period {
        Some(period) => {
            format!("{environments}: {since}, Ankündigung mindestens {period} im Voraus")
        }
        None => format!("{environments}: {since}"),
    },
    no_sending: Counted {
        one: "Im Zeitfenster kann die oben genannte Instanz keine E-Mails versenden.",
        many: |_| {
            "Im Zeitfenster können die oben genannten Instanzen keine E-Mails versenden.".to_owned()
        },
    },
    all_else_works: "Alle anderen Funktionen des Produkts stehen voraussichtlich wie gewohnt zur \
                     Verfügung.",
    transparent: "Darüber hinaus werden Sie von der Umstellung nichts bemerken.",
    closing: "Mit freundlichen Grüßen",
    calendar_attached: "Ein Kalendereintrag für das Zeitfenster ist beigefügt.",
    automatic: "Diese Nachricht wurde automatisch erstellt.",
    calendar_summary: "E-Mail-Versand unterbrochen: Umstellung der Versandinfrastruktur",
};

const MONTHS: [&str; 12] = [
    "Januar",
    "Februar",
    "März",
    "April",
    "Mai",
    "Juni",
    "Juli",
    "August",
    "September",
    "Oktober",
    "November",
    "Dezember",
];

const WEEKDAYS: [&str; 7] =
    ["Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"];

fn day(date: Date) -> String {
    format!("{}.\u{a0}{} {}", date.day(), month(date, &MONTHS), date.year())
}

fn long_day(date: Date) -> String {
    format!("{}, {}", weekday(date, &WEEKDAYS), day(date))
}

fn since(date: Date) -> String {
    match date.day() {
        1 => format!("ab {} {}", month(date, &MONTHS), date.year()),
        _ => format!("ab dem {}", day(date)),
    }
}

/// "Uhr" stands once, behind the last time, unless each time has a zone of its own.
fn within_a_day(Range { from, to, shifts }: &Range) -> String {
    let hours = if *shifts { "\u{a0}Uhr" } else { "" };
    format!(
        "{}, {}{hours}{} bis {}\u{a0}Uhr{}",
        long_day(from.date),
        clock(from.time, ':'),
        from.zone,
        clock(to.time, ':'),
        to.zone
    )
}

fn over_days(Range { from, to, .. }: &Range) -> String {
    format!(
        "{}, {}\u{a0}Uhr{}, bis {}, {}\u{a0}Uhr{}",
        long_day(from.date),
        clock(from.time, ':'),
        from.zone,
        long_day(to.date),
        clock(to.time, ':'),
        to.zone
    )
}

fn zone_name(_: &str, abbreviation: &str) -> Option<&'static str> {
    Some(match abbreviation {
        "WET" => "WEZ",
        "WEST" => "WESZ",
        "CET" => "MEZ",
        "CEST" => "MESZ",
        "EET" => "OEZ",
        "EEST" => "OESZ",
        _ => return None,
    })
}

fn environment(environment: &Environment) -> EnvironmentWords {
    let known = |label, name: &str| {
        let (yours, plural) = (format!("Ihrer {name}"), format!("{name}en"));
        EnvironmentWords::new(label, &yours, &plural)
    };
    match environment {
        Environment::Production => known("Produktion", "Produktionsumgebung"),
        Environment::Staging => known("Staging", "Staging-Umgebung"),
        Environment::Development => known("Entwicklung", "Entwicklungsumgebung"),
        Environment::Named(name) => {
            let name = name.as_str();
            let (yours, plural) =
                (format!("Ihrer Umgebung „{name}“"), format!("Umgebungen „{name}“"));
            EnvironmentWords::new(name, &yours, &plural)
        }
        Environment::Unsaid => EnvironmentWords::new("", "Ihrer Instanzen", "Instanzen"),
    }
}
