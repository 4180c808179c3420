//! Who is told of a wave, and what: from the plan to notices. Owns the grouping by address and the
//! place of each value that a notice cannot take; renders and sends nothing. Floor 4.

use wavegate_notice::{
    Contact, Destination, Draft, Instance, Language, Notice, NoticeError, Program, Scope, Stage,
    Wave,
};

use crate::{
    config::{Diagnostic, Diagnostics, PlanFile},
    plan::{self, Plan, Timestamp},
};

/// Longest domain that a Message-ID takes over; no host name is as long.
const DOMAIN_MAX: usize = 200;

/// One address with all its instances in a wave.
#[derive(Clone, Debug)]
pub(super) struct Addressee {
    /// The address in lower case: what tells addressees apart.
    pub(super) key: String,
    /// As the plan has it. Of several entries the first counts.
    pub(super) contact: plan::Contact,
    /// Whose it is; of several customers the first.
    pub(super) customer: String,
    /// Names of its instances in the wave.
    pub(super) instances: Vec<String>,
    indexes: Vec<usize>,
    /// Where it stands in the plan.
    place: String,
}

/// The addressees of a wave in the order of the plan, and what the plan's author should know.
pub(super) fn addressees(plan: &Plan, wave: &plan::Wave) -> (Vec<Addressee>, Vec<String>) {
    let mut found: Vec<Addressee> = Vec::new();
    let mut by_key = std::collections::HashMap::new();
    let mut warnings = Vec::new();
    for &index in &wave.instances {
        let instance = &plan.instances[index];
        if instance.contacts.is_empty() {
            let name = &instance.name;
            warnings.push(format!(
                "instance {name:?} has no contacts, so nobody is told of it; add `contacts` to it"
            ));
        }
        for (number, contact) in instance.contacts.iter().enumerate() {
            let key = contact.email.to_ascii_lowercase();
            let at = *by_key.entry(key.clone()).or_insert_with(|| {
                found.push(Addressee {
                    key,
                    contact: contact.clone(),
                    customer: instance.customer.clone(),
                    instances: Vec::new(),
                    indexes: Vec::new(),
                    place: format!("instance[{index}].contacts[{number}]"),
                });
                found.len() - 1
            });
            let addressee = &mut found[at];
            warnings.extend(addressee.differs(contact, &instance.name));
            addressee.contact.name = addressee.contact.name.take().or_else(|| contact.name.clone());
            addressee.instances.push(instance.name.clone());
            addressee.indexes.push(index);
        }
    }
    (found, warnings)
}

impl Addressee {
    /// What to say of another entry of the same address that asks for another letter.
    fn differs(&self, other: &plan::Contact, instance: &str) -> Option<String> {
        let own = &self.contact;
        let same = own.language == other.language && own.time_zone == other.time_zone;
        (!same).then(|| {
            format!(
                "{} of instance {instance:?} has language {:?} and time zone {:?}, and elsewhere {:?} \
                 and {:?}, which count; make them the same",
                other.email, other.language, other.time_zone, own.language, own.time_zone
            )
        })
    }
}

/// What all notices of a wave share.
#[derive(Debug)]
pub(super) struct Letters<'a> {
    file: &'a PlanFile,
    wave: &'a plan::Wave,
    program: Program,
    language: Option<Language>,
    issued: Timestamp,
    scope: Vec<Scope>,
    stages: Vec<Stage>,
}

impl<'a> Letters<'a> {
    /// What the plan says for every notice of a wave. The errors name what it lacks; a sender
    /// only where mails are made.
    pub(super) fn new(
        file: &'a PlanFile,
        wave: &'a plan::Wave,
        language: Option<Language>,
        issued: Timestamp,
        needs_sender: bool,
    ) -> Result<Self, Diagnostics> {
        let plan = &*file.plan;
        Ok(Self {
            file,
            wave,
            program: program(file, needs_sender)?,
            language,
            issued,
            scope: scope(plan),
            stages: plan.environments.iter().filter_map(stage).collect(),
        })
    }

    /// The notice for one addressee, who got `sequence` before.
    pub(super) fn notice(&self, to: &Addressee, sequence: u32) -> Result<Notice, Diagnostic> {
        Notice::new(&self.draft(to, sequence)).map_err(|error| self.place(to, &error))
    }

    /// Who sends them; empty where the plan has nobody.
    pub(super) fn sender(&self) -> &str {
        self.program.sender.as_deref().unwrap_or_default()
    }

    /// The Message-ID of a notice: the same for the same notice, so that one that was sent twice
    /// after all is known as one.
    pub(super) fn message_id(&self, to: &Addressee, sequence: u32) -> String {
        let window = &self.wave.window;
        let announced = self.wave.announced.unwrap_or_default();
        let of = format!(
            "{}\n{}\n{}\n{announced}\n{}\n{sequence}",
            window.wave, window.opens, window.closes, to.key
        );
        let digest = blake3::hash(of.as_bytes()).to_hex();
        let domain = self.sender().rsplit_once('@').map(|(_, domain)| domain);
        let domain =
            domain.filter(|domain| domain.len() <= DOMAIN_MAX).unwrap_or("notice.wavegate");
        format!("{}@{domain}", &digest[..32])
    }

    fn draft(&self, to: &Addressee, sequence: u32) -> Draft {
        let (plan, wave) = (&*self.file.plan, self.wave);
        let notice = plan.environment(&wave.environment).map(|one| one.notice_ms);
        let instance = |index: &usize| {
            let instance = &plan.instances[*index];
            Instance {
                name: instance.name.clone(),
                product: instance.product.clone(),
                hosting: instance.hosting.clone().unwrap_or_default(),
            }
        };
        let contact = &to.contact;
        let language = match self.language {
            Some(language) => language.tag().to_owned(),
            None => contact.language.clone(),
        };
        Draft {
            program: self.program.clone(),
            wave: Wave {
                id: wave.window.wave.clone(),
                environment: wave.environment.clone(),
                opens: time(wave.window.opens),
                closes: time(wave.window.closes),
                estimate: plan.estimate_ms(wave).and_then(length),
                notice: notice.and_then(length),
                announced: wave.announced.map(time),
                sequence,
            },
            instances: to.indexes.iter().map(instance).collect(),
            contact: Contact {
                name: contact.name.clone().unwrap_or_default(),
                email: contact.email.clone(),
                language,
                time_zone: contact.time_zone.clone(),
            },
            stages: self.stages.clone(),
            scope: self.scope.clone(),
            issued: time(self.issued),
        }
    }

    /// The error of a notice, at the value that it is about.
    fn place(&self, to: &Addressee, error: &NoticeError) -> Diagnostic {
        let of_contact = |key: &str| format!("{}.{key}", to.place);
        let key = match error {
            NoticeError::Language(_) => of_contact("language"),
            NoticeError::TimeZone(_) => of_contact("time_zone"),
            NoticeError::Address { what: "sender", .. } | NoticeError::NoSender => {
                "program.sender".to_owned()
            }
            NoticeError::Address { what: "reply_to", .. } => "program.reply_to".to_owned(),
            NoticeError::Address { .. } => of_contact("email"),
            NoticeError::Care(_) => "program.contact".to_owned(),
            _ => to.place.clone(),
        };
        self.file.error(&key, error.to_string())
    }
}

fn program(file: &PlanFile, needs_sender: bool) -> Result<Program, Diagnostics> {
    let Some(program) = &file.plan.program else {
        let message = "missing; notices say who upgrades: add `[program]` with `name`, `provider`, \
                       `contact` and `sender`";
        return Err(file.error("program", message).into());
    };
    let mut missing = Vec::new();
    if program.contact.is_none() {
        let message = "missing; notices say where to ask: give the URL or mail address of customer \
                       care, such as \"https://care.example.net/\"";
        missing.push(file.error("program.contact", message));
    }
    if needs_sender && program.sender.is_none() {
        let message = "missing; a mail needs it: give a mail address, such as \
                       \"migration@example.net\"";
        missing.push(file.error("program.sender", message));
    }
    if !missing.is_empty() {
        return Err(Diagnostics(missing));
    }
    Ok(Program {
        name: program.name.clone(),
        provider: program.provider.clone(),
        care: program.contact.clone().unwrap_or_default(),
        sender: program.sender.clone(),
        reply_to: program.reply_to.clone(),
        destination: match program.destination {
            plan::Destination::Cloud => Destination::Cloud,
            plan::Destination::Unnamed => Destination::Unnamed,
        },
    })
}

/// What the plan upgrades, each pair once.
fn scope(plan: &Plan) -> Vec<Scope> {
    let mut seen = std::collections::HashSet::new();
    let pairs = plan.instances.iter().map(|one| (&one.product, &one.hosting));
    pairs
        .filter(|pair| seen.insert(*pair))
        .map(|(product, hosting)| Scope {
            product: product.clone(),
            hosting: hosting.clone().unwrap_or_default(),
        })
        .collect()
}

fn stage(environment: &plan::Environment) -> Option<Stage> {
    Some(Stage {
        environment: environment.name.clone(),
        earliest: time(environment.earliest?),
        notice: length(environment.notice_ms),
    })
}

/// A plan has no times beyond those that can be written.
fn time(at: Timestamp) -> jiff::Timestamp {
    let ms = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX)
}

/// None for none at all: nothing is said of it then.
fn length(ms: u64) -> Option<jiff::SignedDuration> {
    let ms = i64::try_from(ms).ok().filter(|ms| *ms > 0)?;
    Some(jiff::SignedDuration::from_millis(ms))
}
