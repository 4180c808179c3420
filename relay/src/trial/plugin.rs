//! A plugin to be tried: loaded as the relay loads it, bounded by fuel. Floor 4.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;

use super::case::Setup;
use crate::{
    config::{PluginSource, PolicyConfig, TableConfig},
    decision::record::Question,
    policy::{self, HostError, HostOptions, PolicyHost, PolicyProblem, PolicySet},
};

/// A component that questions are put to. What is wrong with it for every configuration is found
/// out when the first case is asked.
#[derive(Debug)]
pub struct Plugin {
    pub(super) host: Arc<PolicyHost>,
    pub(super) name: String,
    pub(super) bytes: usize,
    /// A copy of the component, and its compiled code.
    dir: TempDir,
}

/// No plugin that could be tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The relay would refuse it, whatever its settings are: its author's fault.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Plugin(Vec<PolicyProblem>),
    /// The machine does not give what is needed.
    #[error("{0}")]
    Host(#[from] HostError),
    /// There is no place for its compiled code.
    #[error("compiled code cannot be kept in the directory for temporary files: {0}")]
    Io(#[from] std::io::Error),
}

/// Why there is no policy with the settings of a case.
pub(super) enum Unready {
    /// It refuses them: path and message of each problem.
    Refused(Vec<(String, String)>),
    /// It fails with them.
    Failed(String),
    /// Not for its settings.
    Never(TrialError),
}

impl Plugin {
    /// Of a component in a file.
    pub fn open(file: &Path) -> Result<Self, TrialError> {
        let wasm = policy::read_file(file).map_err(|problem| TrialError::Plugin(vec![problem]))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        Self::new(&name, &wasm)
    }

    /// Of a component in memory, and what it is called in reports.
    pub fn new(name: &str, wasm: &[u8]) -> Result<Self, TrialError> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join(COMPONENT), wasm)?;
        // Calls are bounded by fuel, so that they end at the same place on every machine.
        let options = HostOptions { audit_every: 0, ..HostOptions::simulation(1) };
        let host = PolicyHost::new(Some(dir.path().join(COMPILED)), options)?;
        Ok(Self { host, name: name.to_owned(), bytes: wasm.len(), dir })
    }

    /// The policy as a case configures it, made by `host`.
    pub(super) fn set(&self, host: &PolicyHost, setup: &Setup) -> Result<Arc<PolicySet>, Unready> {
        let policy = PolicyConfig {
            name: "trial".to_owned(),
            plugin: PluginSource::File(self.dir.path().join(COMPONENT)),
            settings: setup.settings.clone(),
            fail: None,
            memory: setup.memory,
            timeout: setup.timeout,
            place: String::new(),
        };
        let table = |(name, entries): (&String, &_)| TableConfig {
            name: name.clone(),
            entries: Clone::clone(entries),
        };
        let tables: Vec<TableConfig> = setup.tables.iter().map(table).collect();
        host.load(&[policy], &tables, &setup.upstreams, &|_| None)
            .map_err(|errors| unready(errors.into_iter().map(|error| error.problem).collect()))
    }

    /// Where compiled code is kept while the plugin is tried.
    pub(super) fn compiled(&self) -> PathBuf {
        self.dir.path().join(COMPILED)
    }
}

const COMPONENT: &str = "plugin.wasm";
const COMPILED: &str = "compiled";

fn unready(problems: Vec<PolicyProblem>) -> Unready {
    let mut refused = Vec::new();
    for problem in &problems {
        match problem {
            PolicyProblem::Settings { path, message } => {
                refused.push((path.clone(), message.clone()));
            }
            // With other settings it may do better.
            PolicyProblem::Needs(_) | PolicyProblem::Failed { .. } => {
                return Unready::Failed(problem.to_string());
            }
            _ => return Unready::Never(TrialError::Plugin(problems)),
        }
    }
    Unready::Refused(refused)
}

/// The question with the state of every upstream that the policy asked for: what the case does not
/// say is up, and nothing was tried there.
pub(super) fn complete(question: &Question, set: &PolicySet) -> Question {
    let mut question = question.clone();
    let transaction = match &mut question {
        Question::Decide { transaction }
        | Question::Route { transaction }
        | Question::Limits { transaction, .. } => transaction,
        Question::Observe { .. } => return question,
    };
    for name in &set.needs().upstreams {
        if !transaction.upstreams.iter().any(|state| state.name == *name) {
            let state = crate::decision::UpstreamState {
                name: name.clone(),
                up: true,
                ..Default::default()
            };
            transaction.upstreams.push(state);
        }
    }
    question
}
