//! French. A non-breaking space stands before : ; ? ! and inside guillemets.

use jiff::civil::{Date, Time};

use super::{
    Answered, Counted, Dates, Environment, EnvironmentWords, Headings, Labels, Questions, Texts,
    month, weekday,
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
            day: ("jour", "jours"),
            hour: ("heure", "heures"),
            minute: ("minute", "minutes"),
            and: " et ",
        },
        zone_name: |_, _| None,
    },
    labels: Labels {
        local_time: "Heure locale",
        utc: "UTC",
        estimate: "Durée estimée",
        window: "Durée du créneau",
        environment: "Environnement",
        program: "Programme",
        reference: "Référence",
        time_zone: "Fuseau horaire",
    },
    headings: Headings {
        when: "Quand",
        what: "Ce qui change, et pourquoi",
        affected: "Votre entreprise est-elle concernée\u{a0}?",
        effect: "À quoi vous attendre",
        questions: "Questions et réponses",
    },
    questions: Questions {
        mandatory: Answered {
            question: "La mise à niveau est-elle obligatoire\u{a0}?",
            answer: "Oui. Vos instances ont besoin de l’infrastructure d’envoi pour envoyer des \
                     e-mails\u{a0}; aucune exception n’est donc possible.",
        },
        customers: Answered {
            question: "Quels clients sont concernés\u{a0}?",
            answer: "Les environnements de tous les clients concernés sont mis à niveau.",
        },
        scope: "Produits concernés\u{a0}:",
        downtime: Answered {
            question: "Quelle interruption faut-il prévoir\u{a0}?",
            answer: |duration| {
                format!(
                    "L’envoi d’e-mails devrait être suspendu pendant environ {duration}. La durée \
                     dépend du nombre d’instances mises à niveau ensemble."
                )
            },
        },
        action: Answered {
            question: "Dois-je faire quelque chose\u{a0}?",
            answer: "Non. Nous nous chargeons de la mise à niveau, qui se déroule automatiquement.",
        },
        test: Answered {
            question: "Dois-je effectuer des tests\u{a0}?",
            answer: "Non, aucun test n’est attendu de votre part. Si vous constatez un problème, \
                     veuillez contacter notre service client\u{a0}:",
        },
        change: Answered {
            question: "Peut-on modifier le créneau\u{a0}?",
            answer: "Non. Cela perturberait la mise à niveau d’autres clients prévue dans le même \
                     créneau.",
        },
        further: Answered {
            question: "À qui adresser d’autres questions\u{a0}?",
            answer: "Notre service client se tient à votre disposition\u{a0}:",
        },
    },
    environment,
    colon: "\u{a0}:",

    subject: |day| format!("Mise à niveau de l’infrastructure d’envoi d’e-mails le {day}"),
    changed: |subject| format!("Modification\u{a0}: {subject}"),
    greeting: |name| match name {
        Some(name) => format!("Bonjour {name},"),
        None => "Bonjour,".to_owned(),
    },
    lead: |lead| {
        format!(
            "Le {}, nous mettrons à niveau le service qui envoie les e-mails {}. Aucun e-mail ne \
             pourra être envoyé pendant le créneau indiqué ci-dessous. Vous n’avez rien à faire.",
            long_day(lead.date),
            lead.yours
        )
    },
    replaces: "Ce message remplace celui que nous vous avons adressé précédemment au sujet de la \
               même opération.",
    what: |destination| match destination {
        Destination::Cloud => {
            "Nous transférons notre infrastructure d’envoi, c’est-à-dire le service qui achemine \
             vos e-mails, de nos centres de données vers un cloud public."
        }
        Destination::Unnamed => {
            "Nous mettons à niveau notre infrastructure d’envoi, c’est-à-dire le service qui \
             achemine vos e-mails."
        }
    },
    why: "La nouvelle infrastructure offre une qualité et une fiabilité accrues, une haute \
          disponibilité et un débit optimal, et elle évolue avec vos besoins.",
    affected: Counted {
        one: "Oui. L’instance suivante est concernée\u{a0}:",
        many: |count| format!("Oui. Les {count} instances suivantes sont concernées\u{a0}:"),
    },
    clocks_change: |length| {
        format!(
            "Le changement d’heure a lieu pendant ce créneau, dont la durée est néanmoins de \
             {length}."
        )
    },
    announced_ahead: |environments, period| {
        format!(
            "Les mises à niveau des {environments} sont annoncées au moins {period} à l’avance."
        )
    },
    announced_on: |day| format!("Cette mise à niveau a été annoncée le {day}."),
    stages: "Calendrier de l’ensemble du programme\u{a0}:",
    stage: |environments, since, period| match period {
        Some(period) => {
            format!("{environments}\u{a0}: {since}, préavis d’au moins {period}")
        }
        None => format!("{environments}\u{a0}: {since}"),
    },
    no_sending: Counted {
        one: "Pendant le créneau, l’instance indiquée ci-dessus ne peut pas envoyer d’e-mails.",
        many: |_| {
            "Pendant le créneau, les instances indiquées ci-dessus ne peuvent pas envoyer d’e-mails."
                .to_owned()
        },
    },
    all_else_works: "Les autres fonctions du produit devraient rester disponibles comme \
                     d’habitude.",
    transparent: "Pour le reste, l’opération est transparente\u{a0}: vous ne remarquerez aucune \
                  différence.",
    closing: "Cordialement,",
    calendar_attached: "Un événement à ajouter à votre agenda est joint à ce message.",
    automatic: "Ce message a été généré automatiquement.",
    calendar_summary: "Envoi d’e-mails suspendu\u{a0}: mise à niveau de l’infrastructure d’envoi",
};

const MONTHS: [&str; 12] = [
    "janvier",
    "février",
    "mars",
    "avril",
    "mai",
    "juin",
    "juillet",
    "août",
    "septembre",
    "octobre",
    "novembre",
    "décembre",
];

const WEEKDAYS: [&str; 7] =
    ["lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"];

/// Only the first of a month is an ordinal.
fn day(date: Date) -> String {
    let ordinal = if date.day() == 1 { "er" } else { "" };
    format!("{}{ordinal}\u{a0}{} {}", date.day(), month(date, &MONTHS), date.year())
}

fn long_day(date: Date) -> String {
    format!("{} {}", weekday(date, &WEEKDAYS), day(date))
}

fn since(date: Date) -> String {
    let month = month(date, &MONTHS);
    match date.day() {
        1 if month.starts_with(['a', 'o']) => format!("à partir d’{month} {}", date.year()),
        1 => format!("à partir de {month} {}", date.year()),
        _ => format!("à partir du {}", day(date)),
    }
}

/// `06 h 00`, all in one piece.
fn clock(time: Time) -> String {
    let seconds = match time.second() {
        0 => String::new(),
        second => format!("\u{a0}min\u{a0}{second:02}\u{a0}s"),
    };
    format!("{:02}\u{a0}h\u{a0}{:02}{seconds}", time.hour(), time.minute())
}

fn within_a_day(Range { from, to, .. }: &Range) -> String {
    format!(
        "{}, de {}{} à {}{}",
        long_day(from.date),
        clock(from.time),
        from.zone,
        clock(to.time),
        to.zone
    )
}

fn over_days(Range { from, to, .. }: &Range) -> String {
    format!(
        "du {} à {}{} au {} à {}{}",
        long_day(from.date),
        clock(from.time),
        from.zone,
        long_day(to.date),
        clock(to.time),
        to.zone
    )
}

fn environment(environment: &Environment) -> EnvironmentWords {
    let known = |label, what: &str| {
        let yours = format!("de votre environnement {what}");
        EnvironmentWords::new(label, &yours, &format!("environnements {what}"))
    };
    match environment {
        Environment::Production => known("Production", "de production"),
        Environment::Staging => known("Préproduction", "de préproduction"),
        Environment::Development => known("Développement", "de développement"),
        Environment::Named(name) => {
            known(name.as_str(), &format!("«\u{a0}{}\u{a0}»", name.as_str()))
        }
        Environment::Unsaid => EnvironmentWords::new("", "de vos instances", "instances"),
    }
}
