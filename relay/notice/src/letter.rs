//! What a notice says, in order, in any language and for any format. Owns which facts are told and
//! when one is left out; the words are in `text`, the looks in the formats.

use serde::Serialize;

use crate::{
    line::{Care, Line},
    notice::{Instance, Notice, Scope, Stage},
    text::{EnvironmentWords, Lead, Texts, capitalized},
    when::{self, Range},
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// A point that customers ask about. Every notice answers each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Topic {
    What,
    Why,
    Affected,
    When,
    Notice,
    Duration,
    Effect,
    Mandatory,
    Customers,
    Downtime,
    Action,
    Test,
    Change,
    Further,
    /// What helps to find the wave again.
    Reference,
}

#[derive(Debug, Serialize)]
pub(crate) struct Letter {
    pub(crate) subject: String,
    pub(crate) greeting: String,
    /// The opening: all that who reads no further must know.
    pub(crate) lead: Vec<String>,
    pub(crate) sections: Vec<Section>,
    pub(crate) questions: Questions,
    pub(crate) closing: String,
    pub(crate) signature: String,
    /// The small print.
    pub(crate) remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Section {
    pub(crate) heading: String,
    pub(crate) parts: Vec<Part>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) topic: Topic,
    #[serde(flatten)]
    pub(crate) block: Block,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Block {
    Paragraph { text: String },
    List { items: Vec<Item> },
    Fact { label: String, value: String },
}

#[derive(Debug, Serialize)]
pub(crate) struct Item {
    pub(crate) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Questions {
    pub(crate) heading: String,
    pub(crate) entries: Vec<Question>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Question {
    pub(crate) topic: Topic,
    pub(crate) question: String,
    pub(crate) answer: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) items: Vec<Item>,
    /// Where to turn to; stands behind the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<Link>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Link {
    pub(crate) text: String,
    pub(crate) href: String,
}

impl Letter {
    pub(crate) fn of(notice: &Notice) -> Self {
        let writer = Writer::new(notice);
        let texts = writer.texts;
        Self {
            subject: writer.subject(),
            greeting: (texts.greeting)(notice.contact.as_ref().map(Line::as_str)),
            lead: writer.lead(),
            sections: vec![writer.when(), writer.what(), writer.affected(), writer.effect()],
            questions: writer.questions(),
            closing: texts.closing.to_owned(),
            signature: notice.provider.as_str().to_owned(),
            remarks: vec![texts.automatic.to_owned()],
        }
    }

    /// As part of a mail that has the calendar entry with it.
    pub(crate) fn with_calendar(notice: &Notice) -> Self {
        let mut letter = Self::of(notice);
        letter.remarks.insert(0, notice.texts().calendar_attached.to_owned());
        letter
    }
}

/// What stands in the calendar: the parts of the letter that make sense there by themselves.
pub(crate) struct Entry {
    pub(crate) summary: String,
    pub(crate) paragraphs: Vec<String>,
}

impl Entry {
    pub(crate) fn of(notice: &Notice) -> Self {
        let writer = Writer::new(notice);
        let texts = writer.texts;
        let instances: Vec<String> =
            writer.instances().iter().map(|item| format!("- {}", item.line())).collect();
        let estimate = writer.estimate().map(|estimate| (texts.labels.estimate, estimate));
        let reference = (texts.labels.reference, notice.wave.as_str().to_owned());
        let facts: Vec<String> = estimate
            .into_iter()
            .chain([reference])
            .map(|(label, value)| format!("{label}{} {value}", texts.colon))
            .collect();
        let further = format!("{} {}", texts.questions.further.answer, notice.care.shown());
        Self {
            summary: writer.with_environment(texts.calendar_summary),
            paragraphs: vec![
                (texts.what)(notice.destination).to_owned(),
                instances.join("\n"),
                format!("{} {}", writer.no_sending(), texts.all_else_works),
                facts.join("\n"),
                further,
            ],
        }
    }
}

impl Item {
    fn bare(text: String) -> Self {
        Self { text, detail: None }
    }

    /// Where there is no other way of setting the detail off.
    pub(crate) fn line(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{} ({detail})", self.text),
            None => self.text.clone(),
        }
    }
}

impl Link {
    fn to(care: &Care) -> Self {
        Self { text: care.shown().to_owned(), href: care.link() }
    }
}

/// A notice, and the words at hand for it.
struct Writer<'a> {
    notice: &'a Notice,
    texts: &'static Texts,
    environment: EnvironmentWords,
}

impl<'a> Writer<'a> {
    fn new(notice: &'a Notice) -> Self {
        let texts = notice.texts();
        Self { notice, texts, environment: (texts.environment)(&notice.environment) }
    }

    fn subject(&self) -> String {
        let day = (self.texts.dates.day)(self.local_date(self.notice.window.opens()));
        let subject = self.with_environment(&(self.texts.subject)(&day));
        if self.replaces() { (self.texts.changed)(&subject) } else { subject }
    }

    fn with_environment(&self, text: &str) -> String {
        match &self.environment.label {
            Some(label) => format!("{text} ({label})"),
            None => text.to_owned(),
        }
    }

    fn replaces(&self) -> bool {
        self.notice.sequence > 0
    }

    fn lead(&self) -> Vec<String> {
        let lead = Lead {
            date: self.local_date(self.notice.window.opens()),
            yours: self.environment.yours.clone(),
        };
        let mut paragraphs = vec![(self.texts.lead)(&lead)];
        if self.replaces() {
            paragraphs.push(self.texts.replaces.to_owned());
        }
        paragraphs
    }

    fn when(&self) -> Section {
        let labels = &self.texts.labels;
        let fact = |topic, label: &str, value: String| Part {
            topic,
            block: Block::Fact { label: label.to_owned(), value },
        };
        let local = self.range(&self.notice.zone);
        let mut parts = vec![fact(Topic::When, labels.local_time, self.texts.dates.range(&local))];
        if !self.zone_is_utc() {
            let mut utc = self.range(&TimeZone::UTC);
            // The label says it.
            utc.to.zone.clear();
            parts.push(fact(Topic::When, labels.utc, self.texts.dates.range(&utc)));
            if let Some(name) = self.notice.zone.iana_name() {
                parts.push(fact(Topic::When, labels.time_zone, name.to_owned()));
            }
        }
        if let Some(estimate) = self.estimate() {
            parts.push(fact(Topic::Duration, labels.estimate, estimate));
        }
        parts.push(fact(Topic::Duration, labels.window, self.window_length()));
        if let Some(label) = &self.environment.label {
            parts.push(fact(Topic::Reference, labels.environment, label.clone()));
        }
        if let Some(program) = &self.notice.program {
            parts.push(fact(Topic::Reference, labels.program, program.as_str().to_owned()));
        }
        let wave = self.notice.wave.as_str().to_owned();
        parts.push(fact(Topic::Reference, labels.reference, wave));
        if local.shifts {
            let text = (self.texts.clocks_change)(&self.window_length());
            parts.push(paragraph(Topic::When, &text));
        }
        parts.extend(self.announcement());
        parts.extend(self.stages());
        section(self.texts.headings.when, parts)
    }

    /// What was promised is said only where it was kept: a late notice says nothing of it.
    fn announcement(&self) -> Option<Part> {
        let Notice { notice, announced, issued, window, .. } = self.notice;
        let told = announced.unwrap_or(*issued);
        let kept = |period: &_| window.opens().duration_since(told) >= *period;
        let ahead = notice.filter(kept).map(|period| {
            let period = self.texts.dates.units.duration(period);
            (self.texts.announced_ahead)(&self.environment.plural, &period)
        });
        let on = announced.map(|announced| {
            (self.texts.announced_on)(&(self.texts.dates.day)(self.local_date(announced)))
        });
        let sentences: Vec<String> = [ahead, on].into_iter().flatten().collect();
        (!sentences.is_empty()).then(|| paragraph(Topic::Notice, &sentences.join(" ")))
    }

    fn stages(&self) -> Vec<Part> {
        let items: Vec<Item> = self.notice.stages.iter().map(|stage| self.stage(stage)).collect();
        if items.is_empty() {
            return Vec::new();
        }
        vec![
            paragraph(Topic::When, self.texts.stages),
            Part { topic: Topic::When, block: Block::List { items } },
        ]
    }

    fn stage(&self, stage: &Stage) -> Item {
        let environments = capitalized(&(self.texts.environment)(&stage.environment).plural);
        // A date of the program, not of somebody's morning: the plan means it in UTC.
        let earliest = stage.earliest.to_zoned(TimeZone::UTC).date();
        let since = (self.texts.dates.since)(earliest);
        let period = stage.notice.map(|period| self.texts.dates.units.duration(period));
        Item::bare((self.texts.stage)(&environments, &since, period.as_deref()))
    }

    fn what(&self) -> Section {
        let parts = vec![
            paragraph(Topic::What, (self.texts.what)(self.notice.destination)),
            paragraph(Topic::Why, self.texts.why),
        ];
        section(self.texts.headings.what, parts)
    }

    fn affected(&self) -> Section {
        let above = match self.notice.instances.len() {
            1 => self.texts.affected.one.to_owned(),
            several => (self.texts.affected.many)(several),
        };
        let list = Block::List { items: self.instances() };
        let parts =
            vec![paragraph(Topic::Affected, &above), Part { topic: Topic::Affected, block: list }];
        section(self.texts.headings.affected, parts)
    }

    fn instances(&self) -> Vec<Item> {
        self.notice.instances.iter().map(instance).collect()
    }

    fn no_sending(&self) -> String {
        match self.notice.instances.len() {
            1 => self.texts.no_sending.one.to_owned(),
            several => (self.texts.no_sending.many)(several),
        }
    }

    fn effect(&self) -> Section {
        let items =
            [self.no_sending(), self.texts.all_else_works.into(), self.texts.transparent.into()];
        let items = items.into_iter().map(Item::bare).collect();
        let parts = vec![Part { topic: Topic::Effect, block: Block::List { items } }];
        section(self.texts.headings.effect, parts)
    }

    fn questions(&self) -> Questions {
        let texts = &self.texts.questions;
        let plain = |topic, question: &str, answer: &str| Question {
            topic,
            question: question.to_owned(),
            answer: answer.to_owned(),
            items: Vec::new(),
            link: None,
        };
        let answered =
            |topic, text: &crate::text::Answered| plain(topic, text.question, text.answer);
        let linked = |topic, text: &crate::text::Answered| Question {
            link: Some(Link::to(&self.notice.care)),
            ..answered(topic, text)
        };
        let mut customers = answered(Topic::Customers, &texts.customers);
        if !self.notice.scope.is_empty() {
            customers.answer = format!("{} {}", customers.answer, texts.scope);
            customers.items = self.notice.scope.iter().map(scope).collect();
        }
        let downtime = (texts.downtime.answer)(&self.expected());
        let entries = vec![
            answered(Topic::Mandatory, &texts.mandatory),
            customers,
            plain(Topic::Downtime, texts.downtime.question, &downtime),
            answered(Topic::Action, &texts.action),
            linked(Topic::Test, &texts.test),
            answered(Topic::Change, &texts.change),
            linked(Topic::Further, &texts.further),
        ];
        Questions { heading: self.texts.headings.questions.to_owned(), entries }
    }

    fn estimate(&self) -> Option<String> {
        self.notice.estimate.map(|estimate| self.texts.dates.units.duration(estimate))
    }

    /// How long it takes, as far as one knows.
    fn expected(&self) -> String {
        self.estimate().unwrap_or_else(|| self.window_length())
    }

    fn window_length(&self) -> String {
        self.texts.dates.units.duration(self.notice.window.length())
    }

    fn range(&self, zone: &TimeZone) -> Range {
        self.notice.window.range(zone, self.texts.dates.zone_name)
    }

    fn zone_is_utc(&self) -> bool {
        let Notice { zone, window, .. } = self.notice;
        when::is_utc(zone, window.opens()) && when::is_utc(zone, window.closes())
    }

    fn local_date(&self, at: Timestamp) -> Date {
        at.to_zoned(self.notice.zone.clone()).date()
    }
}

fn section(heading: &str, parts: Vec<Part>) -> Section {
    Section { heading: heading.to_owned(), parts }
}

fn paragraph(topic: Topic, text: &str) -> Part {
    Part { topic, block: Block::Paragraph { text: text.to_owned() } }
}

fn instance(instance: &Instance) -> Item {
    let detail: Vec<&str> =
        [&instance.product, &instance.hosting].into_iter().flatten().map(Line::as_str).collect();
    let detail = (!detail.is_empty()).then(|| detail.join(", "));
    Item { text: instance.name.as_str().to_owned(), detail }
}

fn scope(scope: &Scope) -> Item {
    let hosting: Vec<&str> = scope.hosting.iter().map(Line::as_str).collect();
    let detail = (!hosting.is_empty()).then(|| hosting.join(", "));
    Item { text: scope.product.as_str().to_owned(), detail }
}
