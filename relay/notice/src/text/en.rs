//! English.

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
            day: ("day", "days"),
            hour: ("hour", "hours"),
            minute: ("minute", "minutes"),
            and: " ",
        },
        zone_name: |_, _| None,
    },
    labels: Labels {
        local_time: "Your time",
        utc: "UTC",
        estimate: "Estimated duration",
        window: "Length of window",
        environment: "Environment",
        program: "Programme",
        reference: "Reference",
        time_zone: "Time zone",
    },
    headings: Headings {
        when: "When",
        what: "What we upgrade, and why",
        affected: "Are you affected?",
        effect: "What to expect",
        questions: "Questions and answers",
    },
    questions: Questions {
        mandatory: Answered {
            question: "Is the upgrade mandatory?",
            answer: "Yes. Your instances need the sending infrastructure to send email, so none of \
                     them can be left out.",
        },
        customers: Answered {
            question: "Which customers are upgraded?",
            answer: "The environments of all affected customers are upgraded.",
        },
        scope: "Products covered:",
        downtime: Answered {
            question: "How long is the downtime?",
            answer: |duration| {
                format!(
                    "We expect email sending to be interrupted for about {duration}. The duration \
                     depends on how many instances are upgraded together."
                )
            },
        },
        action: Answered {
            question: "Do I have to do anything?",
            answer: "No. We carry out the upgrade, and it runs automatically.",
        },
        test: Answered {
            question: "Do I have to test anything?",
            answer: "No, we do not expect you to run any tests. If you notice a problem, please \
                     contact customer care:",
        },
        change: Answered {
            question: "Can the time slot be changed?",
            answer: "No. That would disturb the upgrade of other customers in the same slot.",
        },
        further: Answered {
            question: "Whom can I ask if I have further questions?",
            answer: "Our customer care team will be glad to help:",
        },
    },
    environment,
    colon: ":",

    subject: |day| format!("Upgrade of the email sending infrastructure on {day}"),
    changed: |subject| format!("Updated: {subject}"),
    greeting: |name| match name {
        Some(name) => format!("Dear {name},"),
        None => "Dear customer,".to_owned(),
    },
    lead: |lead| {
        format!(
            "On {}, we will upgrade the service that sends the email {}. No email can be sent \
             during the time window given below. You do not need to do anything.",
            long_day(lead.date),
            lead.yours
        )
    },
    replaces: "This notice replaces the one that we sent you earlier about the same upgrade.",
    what: |destination| match destination {
        Destination::Cloud => {
            "We are moving our sending infrastructure, the service that delivers your email, from \
             our data centres to a public cloud."
        }
        Destination::Unnamed => {
            "We are upgrading our sending infrastructure, the service that delivers your email."
        }
    },
    why: "The new infrastructure offers better quality and reliability, high availability and \
          optimal throughput, and it scales with your needs.",
    affected: Counted {
        one: "Yes. This instance is part of the upgrade:",
        many: |count| format!("Yes. These {count} instances are part of the upgrade:"),
    },
    clocks_change: |length| {
        format!("The clocks change during this window; it lasts {length} all the same.")
    },
    announced_ahead: |environments, period| {
        format!("Upgrades of {environments} are announced at least {period} in advance.")
    },
    announced_on: |day| format!("This upgrade was announced on {day}."),
    stages: "Timetable of the whole programme:",
    stage: |environments, since, period| match period {
        Some(period) => format!("{environments}: {since}, announced at least {period} in advance"),
        None => format!("{environments}: {since}"),
    },
    no_sending: Counted {
        one: "During the window, the instance named above cannot send email.",
        many: |_| "During the window, the instances named above cannot send email.".to_owned(),
    },
    all_else_works: "Everything else in the product is expected to work as usual.",
    transparent: "Apart from that, the upgrade is transparent: you will not notice any difference.",
    closing: "Kind regards,",
    calendar_attached: "A calendar entry for the window is attached.",
    automatic: "This message was generated automatically.",
    calendar_summary: "Email sending paused: upgrade of the sending infrastructure",
};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

fn day(date: Date) -> String {
    format!("{}\u{a0}{} {}", date.day(), month(date, &MONTHS), date.year())
}

fn long_day(date: Date) -> String {
    format!("{}, {}", weekday(date, &WEEKDAYS), day(date))
}

fn since(date: Date) -> String {
    match date.day() {
        1 => format!("from {} {}", month(date, &MONTHS), date.year()),
        _ => format!("from {}", day(date)),
    }
}

fn within_a_day(Range { from, to, .. }: &Range) -> String {
    format!(
        "{}, from {}{} to {}{}",
        long_day(from.date),
        clock(from.time, ':'),
        from.zone,
        clock(to.time, ':'),
        to.zone
    )
}

fn over_days(Range { from, to, .. }: &Range) -> String {
    format!(
        "from {}, {}{} to {}, {}{}",
        long_day(from.date),
        clock(from.time, ':'),
        from.zone,
        long_day(to.date),
        clock(to.time, ':'),
        to.zone
    )
}

fn environment(environment: &Environment) -> EnvironmentWords {
    let known = |label, name: &str| {
        let (yours, plural) = (format!("of your {name}"), format!("{name}s"));
        EnvironmentWords::new(label, &yours, &plural)
    };
    match environment {
        Environment::Production => known("Production", "production environment"),
        Environment::Staging => known("Staging", "staging environment"),
        Environment::Development => known("Development", "development environment"),
        Environment::Named(name) => {
            known(name.as_str(), &format!("“{}” environment", name.as_str()))
        }
        Environment::Unsaid => EnvironmentWords::new("", "of your instances", "instances"),
    }
}
