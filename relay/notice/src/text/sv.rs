//! Swedish.

use jiff::civil::{Date, Time};

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
            day: ("dag", "dagar"),
            hour: ("timme", "timmar"),
            minute: ("minut", "minuter"),
            and: " och ",
        },
        zone_name: |_, _| None,
    },
    labels: Labels {
        local_time: "Lokal tid",
        utc: "UTC",
        estimate: "Beräknad tid",
        window: "Tidsfönstrets längd",
        environment: "Miljö",
        program: "Program",
        reference: "Referens",
        time_zone: "Tidszon",
    },
    headings: Headings {
        when: "När",
        what: "Vad vi uppgraderar och varför",
        affected: "Berörs ni?",
        effect: "Vad ni kan vänta er",
        questions: "Frågor och svar",
    },
    questions: Questions {
        mandatory: Answered {
            question: "Är uppgraderingen obligatorisk?",
            answer: "Ja. Era instanser behöver infrastrukturen för att kunna skicka e-post, och \
                     därför kan inga undantag göras.",
        },
        customers: Answered {
            question: "Vilka kunder berörs?",
            answer: "Miljöerna hos alla berörda kunder uppgraderas.",
        },
        scope: "Produkter som omfattas:",
        downtime: Answered {
            question: "Hur långt blir avbrottet?",
            answer: |duration| {
                format!(
                    "Utskicken av e-post väntas ligga nere i ungefär {duration}. Tiden beror på hur \
                     många instanser som uppgraderas tillsammans."
                )
            },
        },
        action: Answered {
            question: "Behöver vi göra något?",
            answer: "Nej. Vi sköter uppgraderingen och den sker automatiskt.",
        },
        test: Answered {
            question: "Behöver vi testa något?",
            answer: "Nej, inga tester väntas från er sida. Om ni märker något problem är ni \
                     välkomna att kontakta vår kundtjänst:",
        },
        change: Answered {
            question: "Kan tiden ändras?",
            answer: "Nej. Det skulle störa uppgraderingen för andra kunder i samma tidsfönster.",
        },
        further: Answered {
            question: "Vem kan vi kontakta om vi har fler frågor?",
            answer: "Vår kundtjänst hjälper er gärna:",
        },
    },
    environment,
    colon: ":",

    subject: |day| format!("Uppgradering av infrastrukturen för e-postutskick den {day}"),
    changed: |subject| format!("Ändrat: {subject}"),
    greeting: |name| match name {
        Some(name) => format!("Hej {name}!"),
        None => "Hej!".to_owned(),
    },
    lead: |lead| {
        format!(
            "{}en den {} uppgraderar vi tjänsten som skickar e-post från {}. Under tidsfönstret \
             nedan kan ingen e-post skickas. Ni behöver inte göra något.",
            super::capitalized(weekday(lead.date, &WEEKDAYS)),
            day(lead.date),
            lead.yours
        )
    },
    replaces: "Det här meddelandet ersätter det som vi tidigare har skickat om samma uppgradering.",
    what: |destination| match destination {
        Destination::Cloud => {
            "Vi flyttar vår infrastruktur för e-postutskick, det vill säga tjänsten som levererar \
             er e-post, från våra datacenter till ett publikt moln."
        }
        Destination::Unnamed => {
            "Vi uppgraderar vår infrastruktur för e-postutskick, det vill säga tjänsten som \
             levererar er e-post."
        }
    },
    why: "Den nya infrastrukturen ger bättre kvalitet och tillförlitlighet, hög tillgänglighet och \
          optimal kapacitet, och den växer med era behov.",
    affected: Counted {
        one: "Ja. Den här instansen ingår i uppgraderingen:",
        many: |count| format!("Ja. De här {count} instanserna ingår i uppgraderingen:"),
    },
    clocks_change: |length| {
        format!("Klockan ställs om under tidsfönstret, som ändå varar i {length}.")
    },
    announced_ahead: |environments, period| {
        format!("Uppgraderingar av {environments} meddelas minst {period} i förväg.")
    },
    announced_on: |day| format!("Den här uppgraderingen meddelades den {day}."),
    stages: "Tidsplan för hela programmet:",
    stage: |environments, since, period| match period {
        Some(period) => format!("{environments}: {since}, meddelas minst {period} i förväg"),
        None => format!("{environments}: {since}"),
    },
    no_sending: Counted {
        one: "Under tidsfönstret kan instansen ovan inte skicka e-post.",
        many: |_| "Under tidsfönstret kan instanserna ovan inte skicka e-post.".to_owned(),
    },
    all_else_works: "Allt annat i produkten väntas fungera som vanligt.",
    transparent: "I övrigt märker ni inget av uppgraderingen.",
    closing: "Med vänliga hälsningar",
    calendar_attached: "En kalenderhändelse för tidsfönstret är bifogad.",
    automatic: "Det här meddelandet har skapats automatiskt.",
    calendar_summary: "Inga e-postutskick: uppgradering av infrastrukturen",
};

const MONTHS: [&str; 12] = [
    "januari",
    "februari",
    "mars",
    "april",
    "maj",
    "juni",
    "juli",
    "augusti",
    "september",
    "oktober",
    "november",
    "december",
];

const WEEKDAYS: [&str; 7] = ["måndag", "tisdag", "onsdag", "torsdag", "fredag", "lördag", "söndag"];

fn day(date: Date) -> String {
    format!("{}\u{a0}{} {}", date.day(), month(date, &MONTHS), date.year())
}

fn long_day(date: Date) -> String {
    format!("{} {}", weekday(date, &WEEKDAYS), day(date))
}

fn since(date: Date) -> String {
    match date.day() {
        1 => format!("från {} {}", month(date, &MONTHS), date.year()),
        _ => format!("från den {}", day(date)),
    }
}

fn at(time: Time) -> String {
    format!("kl.\u{a0}{}", clock(time, '.'))
}

/// A dash between times of day; where zones stand between them, a word.
fn within_a_day(Range { from, to, shifts }: &Range) -> String {
    let (date, start, end) = (long_day(from.date), at(from.time), clock(to.time, '.'));
    if *shifts {
        format!("{date} från {start}{} till kl.\u{a0}{end}{}", from.zone, to.zone)
    } else {
        format!("{date} {start}–{end}{}", to.zone)
    }
}

fn over_days(Range { from, to, .. }: &Range) -> String {
    format!(
        "från {} {}{} till {} {}{}",
        long_day(from.date),
        at(from.time),
        from.zone,
        long_day(to.date),
        at(to.time),
        to.zone
    )
}

fn environment(environment: &Environment) -> EnvironmentWords {
    let known = |label, name: &str| {
        EnvironmentWords::new(label, &format!("er {name}"), &format!("{name}er"))
    };
    match environment {
        Environment::Production => known("Produktion", "produktionsmiljö"),
        Environment::Staging => known("Staging", "stagingmiljö"),
        Environment::Development => known("Utveckling", "utvecklingsmiljö"),
        Environment::Named(name) => {
            let name = name.as_str();
            EnvironmentWords::new(name, &format!("er miljö ”{name}”"), &format!("miljöer ”{name}”"))
        }
        Environment::Unsaid => EnvironmentWords::new("", "era instanser", "instanser"),
    }
}
