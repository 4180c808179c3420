//! `wavegate plugin replay`: what a plugin would have answered to the questions of a decision log.
//! Floor 4.
//!
//! It asks each question in a fresh instance, bounded by fuel, so that the same log and plugin come
//! to the same on every machine. A log is read line by line: memory does not grow with it.

mod log;
mod report;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;

use super::{Failed, exit};
use crate::{
    config::{self, Config, PluginSource, PolicyConfig, TableConfig},
    decision::record::{Answer, Class, Question, Said},
    decision_log::line::{ANSWER, CallLine, Line, PolicyLine, digest},
    generation,
    policy::{Fresh, Hook, HostOptions, PolicyHost, PolicySet},
};
use log::Logs;
use report::Report;

/// Plugins with the settings of one part of the log that are kept ready.
const LOADED: usize = 8;
/// Policy lines that are kept: a generation has one for each policy.
const CONTEXTS: usize = 1024;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct ReplayArgs {
    /// The decision log; the older ones that it has grown into are read before it. Several times
    /// for logs of several relays.
    #[arg(long, value_name = "LOG", required = true)]
    log: Vec<PathBuf>,
    /// The policy whose questions are asked; need not be said where the log has one policy.
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Settings, as JSON or (*.toml) TOML, instead of those in the log.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Settings of the policy, upstreams and tables of this configuration instead of those in the
    /// log.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask at most so many questions.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Fail (exit code 1) where more of the answers than this differ.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_differences: Option<f64>,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// The plugin, or "builtin:NAME".
    #[arg(value_name = "FILE.wasm")]
    plugin: PathBuf,
}

fn percent(text: &str) -> Result<f64, String> {
    let wanted = || "write a number from 0 to 100".to_owned();
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| wanted())?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err(wanted()) }
}

/// Replays and prints.
pub(super) fn replay(args: &ReplayArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let policy = match &args.policy {
        Some(policy) => policy.clone(),
        None => log::only_policy(&args.log)?,
    };
    let mut replay = Replay::new(args, policy)?;
    let mut logs = Logs::open(&args.log)?;
    while replay.wants_more(args.limit)
        && let Some(line) = logs.next()?
    {
        replay.line(line)?;
    }
    replay.report.damaged = logs.damaged();
    let code = replay.report.verdict(args.max_differences)?;
    match args.json {
        true => super::super::output::json(out, &replay.report)?,
        false => replay.report.print(out)?,
    }
    Ok(code)
}

/// A replay as far as it has come.
struct Replay {
    host: Arc<PolicyHost>,
    plugin: PluginSource,
    policy: String,
    /// What is taken instead of what the log says.
    config: Option<Config>,
    settings: Option<String>,
    contexts: HashMap<String, Arc<PolicyLine>>,
    loaded: Vec<(String, Arc<PolicySet>)>,
    report: Report,
}

/// What came of a question: a class, and the two answers where both are known; or why there is
/// none.
enum Outcome {
    Compared { class: Class, new: Said },
    Not(String),
}

impl Replay {
    fn new(args: &ReplayArgs, policy: String) -> Result<Self, Failed> {
        let plugin = match args.plugin.to_str().and_then(|text| text.strip_prefix("builtin:")) {
            Some(name) => PluginSource::Builtin(name.to_owned()),
            None => PluginSource::File(args.plugin.clone()),
        };
        let config = args.config.as_deref().map(config::read).transpose();
        let config = config
            .map_err(|found| Failed::new(exit::CONFIG, format!("the configuration:\n{found}")))?;
        let mut settings = args.settings.as_deref().map(settings).transpose()?;
        if let Some(config) = &config
            && settings.is_none()
        {
            let found = config.policies.iter().find(|one| one.name == policy);
            let none = || Failed::new(exit::USAGE, format!("--config has no policy {policy:?}"));
            settings = Some(found.ok_or_else(none)?.settings.clone());
        }
        let options = HostOptions { audit_every: 0, ..HostOptions::simulation(1) };
        let host = PolicyHost::new(None, options)
            .map_err(|error| Failed::new(exit::OS, format!("policy host: {error}")))?;
        let report = Report::new(&policy);
        let (contexts, loaded) = (HashMap::new(), Vec::new());
        Ok(Self { host, plugin, policy, config, settings, contexts, loaded, report })
    }

    fn wants_more(&self, limit: Option<u64>) -> bool {
        limit.is_none_or(|limit| self.report.asked() < limit)
    }

    fn line(&mut self, line: Line) -> Result<(), Failed> {
        match line {
            Line::Policy(line) if line.policy == self.policy => {
                if self.contexts.len() >= CONTEXTS {
                    self.contexts.clear();
                }
                self.report.hashed |= line.hashed;
                self.contexts.insert(line.context.clone(), Arc::from(line));
            }
            Line::Call(call) if call.policy == self.policy => {
                let context = self.contexts.get(&call.context).cloned();
                let outcome = self.ask(&call, context.as_deref())?;
                let is_own = context.as_ref().is_some_and(|context| self.is_own(context));
                self.report.count(&call, outcome, is_own);
            }
            Line::Policy(_) | Line::Call(_) => {}
            Line::Lost { count } => self.report.lost += count,
        }
        Ok(())
    }

    /// Whether the plugin is the one that answered, with what it had then.
    fn is_own(&self, then: &PolicyLine) -> bool {
        let same_settings =
            self.settings.as_ref().is_none_or(|text| digest(text) == then.settings_digest);
        let same_tables = self.config.is_none();
        self.report.digest() == Some(&then.plugin) && same_settings && same_tables
    }

    fn ask(&mut self, call: &CallLine, then: Option<&PolicyLine>) -> Result<Outcome, Failed> {
        let not = |why: String| Ok(Outcome::Not(why));
        if let Said::Failure { kind, .. } = &call.said {
            return not(format!("the one that was asked had failed ({kind})"));
        }
        let set = match self.loaded(then)? {
            Ok(set) => set,
            Err(why) => return not(why.to_owned()),
        };
        let policy = &set.policies()[0];
        let has = match &call.question {
            Question::Decide { .. } => policy.has(Hook::Freeze),
            Question::Route { .. } => policy.has(Hook::Routing),
            Question::Limits { .. } => policy.has(Hook::Throttling),
            Question::Observe { .. } => policy.has(Hook::Throttling) && policy.needs().outcomes,
        };
        let new = if !has {
            // The relay would not ask it.
            Said::Answer(Answer::neutral(&call.question))
        } else {
            if let Some(why) = unknown(policy.needs(), call, then) {
                return not(why);
            }
            Fresh::new(&set, 0).and_then(|mut fresh| fresh.ask(&call.question)).into()
        };
        let class = Class::of(&call.said, &new);
        if class != Class::Same && call.hidden.iter().any(|hidden| hidden == ANSWER) {
            return not("words of the answer are hashed in the log".to_owned());
        }
        Ok(Outcome::Compared { class, new })
    }

    /// The plugin as it would have been configured; or why that is not known.
    fn loaded(
        &mut self,
        then: Option<&PolicyLine>,
    ) -> Result<Result<Arc<PolicySet>, &'static str>, Failed> {
        let key = match (&self.config, then) {
            (Some(_), _) => String::new(),
            (None, Some(then)) => then.context.clone(),
            (None, None) => return Ok(Err("the line with its policy is missing; give --config")),
        };
        if let Some((_, set)) = self.loaded.iter().find(|(known, _)| *known == key) {
            return Ok(Ok(Arc::clone(set)));
        }
        let settings = self.settings.clone().or_else(|| then?.settings.clone());
        let Some(settings) = settings else {
            return Ok(Err("its settings are too long for the log; give --settings"));
        };
        let (tables, upstreams) = match (&self.config, then) {
            (Some(config), _) => {
                let upstreams = config.upstreams.iter().map(|one| one.name.clone()).collect();
                (config.tables.clone(), upstreams)
            }
            (None, then) => match then.and_then(|then| then.tables.clone().zip(Some(then))) {
                Some((tables, then)) => (table_configs(tables), then.upstreams.clone()),
                None => return Ok(Err("the tables are too long for the log; give --config")),
            },
        };
        let mine = self.config.as_ref();
        let mine = mine.and_then(|it| it.policies.iter().find(|one| one.name == self.policy));
        let config = PolicyConfig {
            settings,
            memory: mine.map(|it| it.memory).or(then.map(|then| then.memory)).unwrap_or(16 << 20),
            timeout: mine
                .map(|it| it.timeout)
                .or(then.map(|then| Duration::from_millis(then.timeout_ms)))
                .unwrap_or(Duration::from_millis(50)),
            ..PolicyConfig::new(self.policy.clone(), self.plugin.clone())
        };
        let set = self.host.load(&[config], &tables, &upstreams, &generation::builtin);
        let set = set.map_err(|errors| {
            let problems: Vec<_> = errors.iter().map(|error| error.problem.to_string()).collect();
            let problems = problems.join("\n");
            Failed::new(exit::CONFIG, format!("the plugin cannot be used:\n{problems}"))
        })?;
        self.report.candidate(&set.policies()[0]);
        if self.loaded.len() >= LOADED {
            self.loaded.remove(0);
        }
        self.loaded.push((key, Arc::clone(&set)));
        Ok(Ok(set))
    }
}

/// What a plugin wants to know of a message that the log does not say.
fn unknown(
    needs: &crate::policy::Needs,
    call: &CallLine,
    then: Option<&PolicyLine>,
) -> Option<String> {
    call.question.transaction()?;
    for need in &needs.attributes {
        if call.hidden.contains(need) {
            return Some(format!("the log has no true {need}"));
        }
        if then.is_none_or(|then| !then.attributes.contains(need)) {
            return Some(format!("the log has no {need}: no policy had asked for it"));
        }
    }
    let missing = |need: &&String| then.is_none_or(|then| !then.states.contains(*need));
    let missing = needs.upstreams.iter().find(missing);
    missing.map(|need| format!("the log has no state of upstream {need}: no policy had asked"))
}

fn table_configs(tables: BTreeMap<String, BTreeMap<String, String>>) -> Vec<TableConfig> {
    tables.into_iter().map(|(name, entries)| TableConfig { name, entries }).collect()
}

/// Settings in a file, as JSON text.
fn settings(path: &Path) -> Result<String, Failed> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| Failed::new(exit::NO_INPUT, format!("cannot read {shown}: {error}")))?;
    let bad = |error: String| Failed::new(exit::DATA, format!("{shown}: {error}"));
    let value: serde_json::Value = if path.extension().is_some_and(|ending| ending == "toml") {
        toml::from_str(&text).map_err(|error| bad(error.to_string()))?
    } else {
        serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?
    };
    Ok(value.to_string())
}
