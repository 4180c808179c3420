//! Italian.

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
            day: ("giorno", "giorni"),
            hour: ("ora", "ore"),
            minute: ("minuto", "minuti"),
            and: " e ",
        },
        zone_name: |_, _| None,
    },
    labels: Labels {
        local_time: "Ora locale",
        utc: "UTC",
        estimate: "Durata stimata",
        window: "Durata della finestra",
        environment: "Ambiente",
        program: "Programma",
        reference: "Riferimento",
        time_zone: "Fuso orario",
    },
    headings: Headings {
        when: "Quando",
        what: "Che cosa aggiorniamo e perché",
        affected: "Siete interessati dall’aggiornamento?",
        effect: "Che cosa aspettarsi",
        questions: "Domande e risposte",
    },
    questions: Questions {
        mandatory: Answered {
            question: "L’aggiornamento è obbligatorio?",
            answer: "Sì. Senza l’infrastruttura di invio le vostre istanze non possono inviare \
                     e-mail; non sono quindi possibili eccezioni.",
        },
        customers: Answered {
            question: "Quali clienti sono interessati?",
            answer: "Vengono aggiornati gli ambienti di tutti i clienti interessati.",
        },
        scope: "Prodotti interessati:",
        downtime: Answered {
            question: "Quanto durerà l’interruzione?",
            answer: |duration| {
                format!(
                    "Si prevede che l’invio di e-mail resti sospeso per circa {duration}. La durata \
                     dipende dal numero di istanze aggiornate insieme."
                )
            },
        },
        action: Answered {
            question: "Devo fare qualcosa?",
            answer: "No. L’aggiornamento è a nostra cura e avviene in modo automatico.",
        },
        test: Answered {
            question: "Devo eseguire dei test?",
            answer: "No, non sono previsti test da parte vostra. Se notate un problema, vi \
                     preghiamo di contattare il nostro servizio clienti:",
        },
        change: Answered {
            question: "È possibile cambiare la data o l’orario?",
            answer: "No. Uno spostamento comprometterebbe l’aggiornamento di altri clienti nella \
                     stessa finestra.",
        },
        further: Answered {
            question: "A chi posso rivolgermi per altre domande?",
            answer: "Il nostro servizio clienti è a vostra disposizione:",
        },
    },
    environment,
    colon: ":",

    // The colon saves the article, which differs with the day: "il 20", "l’8".
    subject: |day| format!("Aggiornamento dell’infrastruttura di invio e-mail: {day}"),
    changed: |subject| format!("Modifica – {subject}"),
    greeting: |name| match name {
        Some(name) => format!("Gentile {name},"),
        None => "Gentile cliente,".to_owned(),
    },
    // After the comma of the greeting a small letter begins.
    lead: |lead| {
        format!(
            "nella giornata di {} aggiorneremo il servizio che invia le e-mail {}. Durante la \
             finestra di manutenzione indicata di seguito non sarà possibile inviare e-mail. Da \
             parte vostra non è richiesto alcun intervento.",
            long_day(lead.date),
            lead.yours
        )
    },
    replaces: "Questa comunicazione sostituisce quella inviata in precedenza per lo stesso \
               aggiornamento.",
    what: |destination| match destination {
        Destination::Cloud => {
            "Stiamo trasferendo la nostra infrastruttura di invio, ossia il servizio che recapita \
             le vostre e-mail, dai nostri data center a un cloud pubblico."
        }
        Destination::Unnamed => {
            "Stiamo aggiornando la nostra infrastruttura di invio, ossia il servizio che recapita \
             le vostre e-mail."
        }
    },
    why: "La nuova infrastruttura offre qualità e affidabilità superiori, alta disponibilità e una \
          velocità di invio ottimale, e cresce con le vostre esigenze.",
    affected: Counted {
        one: "Sì. Questa istanza fa parte dell’aggiornamento:",
        many: |count| format!("Sì. Queste {count} istanze fanno parte dell’aggiornamento:"),
    },
    clocks_change: |length| {
        format!("Durante la finestra avviene il cambio dell’ora; la sua durata resta di {length}.")
    },
    announced_ahead: |environments, period| {
        format!(
            "Gli aggiornamenti di {environments} vengono annunciati con almeno {period} \
             di anticipo."
        )
    },
    announced_on: |day| format!("Questo aggiornamento è stato annunciato in data {day}."),
    stages: "Calendario dell’intero programma:",
    stage: |environments, since, period| match period {
        Some(period) => format!("{environments}: {since}, con almeno {period} di preavviso"),
        None => format!("{environments}: {since}"),
    },
    no_sending: Counted {
        one: "Durante la finestra l’istanza sopra indicata non può inviare e-mail.",
        many: |_| {
            "Durante la finestra le istanze sopra indicate non possono inviare e-mail.".to_owned()
        },
    },
    all_else_works: "Tutte le altre funzioni del prodotto dovrebbero restare disponibili come di \
                     consueto.",
    transparent: "Per il resto l’aggiornamento è trasparente: non noterete alcuna differenza.",
    closing: "Cordiali saluti,",
    calendar_attached: "In allegato trovate un evento per il vostro calendario.",
    automatic: "Questo messaggio è stato generato automaticamente.",
    calendar_summary: "Invio di e-mail sospeso: aggiornamento dell’infrastruttura di invio",
};

const MONTHS: [&str; 12] = [
    "gennaio",
    "febbraio",
    "marzo",
    "aprile",
    "maggio",
    "giugno",
    "luglio",
    "agosto",
    "settembre",
    "ottobre",
    "novembre",
    "dicembre",
];

const WEEKDAYS: [&str; 7] =
    ["lunedì", "martedì", "mercoledì", "giovedì", "venerdì", "sabato", "domenica"];

/// Only the first of a month is an ordinal.
fn day(date: Date) -> String {
    let ordinal = if date.day() == 1 { "º" } else { "" };
    format!("{}{ordinal}\u{a0}{} {}", date.day(), month(date, &MONTHS), date.year())
}

fn long_day(date: Date) -> String {
    format!("{} {}", weekday(date, &WEEKDAYS), day(date))
}

fn since(date: Date) -> String {
    match date.day() {
        1 => format!("da {} {}", month(date, &MONTHS), date.year()),
        // "otto" and "undici" begin with a vowel.
        8 | 11 => format!("dall’{}", day(date)),
        _ => format!("dal {}", day(date)),
    }
}

fn within_a_day(Range { from, to, .. }: &Range) -> String {
    format!(
        "{}, dalle ore {}{} alle ore {}{}",
        long_day(from.date),
        clock(from.time, ':'),
        from.zone,
        clock(to.time, ':'),
        to.zone
    )
}

fn over_days(Range { from, to, .. }: &Range) -> String {
    format!(
        "da {}, ore {}{}, a {}, ore {}{}",
        long_day(from.date),
        clock(from.time, ':'),
        from.zone,
        long_day(to.date),
        clock(to.time, ':'),
        to.zone
    )
}

fn environment(environment: &Environment) -> EnvironmentWords {
    let known = |label, what: &str| {
        let yours = format!("del vostro ambiente {what}");
        EnvironmentWords::new(label, &yours, &format!("ambienti {what}"))
    };
    match environment {
        Environment::Production => known("Produzione", "di produzione"),
        Environment::Staging => known("Staging", "di staging"),
        Environment::Development => known("Sviluppo", "di sviluppo"),
        Environment::Named(name) => known(name.as_str(), &format!("«{}»", name.as_str())),
        Environment::Unsaid => EnvironmentWords::new("", "delle vostre istanze", "istanze"),
    }
}
