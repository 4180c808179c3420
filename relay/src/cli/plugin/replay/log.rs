//! The lines of decision logs, one after the other. What cannot be read is counted and named.
//! Floor 4.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Failed, exit};
use crate::decision_log::line::Line;

/// Bytes of a line: far more than the relay writes.
const LONGEST: u64 = 4 << 20;
/// Damaged lines that are named; the rest are counted.
const NAMED: usize = 5;
/// Policies that are told apart before somebody must say which.
const POLICIES: usize = 100;

/// Logs that are read.
pub(super) struct Logs {
    files: VecDeque<(PathBuf, BufReader<File>)>,
    /// Lines read of the first of them.
    line: u64,
    damaged: Damaged,
}

/// Lines that cannot be read.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Damaged {
    pub(super) count: u64,
    /// The first of them: file, line and what is wrong.
    pub(super) first: Vec<String>,
}

impl Logs {
    /// Opens all at once: a relay that goes on writing may rename them.
    pub(super) fn open(logs: &[PathBuf]) -> Result<Self, Failed> {
        let mut files = VecDeque::new();
        for path in logs.iter().flat_map(|log| with_older(log)) {
            let file = File::open(&path).map_err(|error| cannot_read(&path, &error))?;
            files.push_back((path, BufReader::new(file)));
        }
        Ok(Self { files, line: 0, damaged: Damaged::default() })
    }

    /// The next line that can be read.
    pub(super) fn next(&mut self) -> Result<Option<Line>, Failed> {
        self.read(|text| serde_json::from_slice(text).map_err(|error| error.to_string()))
    }

    pub(super) fn damaged(&self) -> Damaged {
        self.damaged.clone()
    }

    fn read<T>(&mut self, parse: impl Fn(&[u8]) -> Result<T, String>) -> Result<Option<T>, Failed> {
        let mut text = Vec::new();
        while let Some((path, file)) = self.files.front_mut() {
            text.clear();
            let read = file.by_ref().take(LONGEST).read_until(b'\n', &mut text);
            if read.map_err(|error| cannot_read(path, &error))? == 0 {
                self.files.pop_front();
                self.line = 0;
                continue;
            }
            self.line += 1;
            let parsed = if text.ends_with(b"\n") {
                parse(&text)
            } else if (text.len() as u64) < LONGEST {
                Err("it is cut off".to_owned())
            } else {
                skip_line(file).map_err(|error| cannot_read(path, &error))?;
                Err("it is longer than any that a relay writes".to_owned())
            };
            match parsed {
                Ok(line) => return Ok(Some(line)),
                Err(why) => {
                    self.damaged.count += 1;
                    if self.damaged.first.len() < NAMED {
                        let place = format!("{}:{}: {why}", path.display(), self.line);
                        self.damaged.first.push(place);
                    }
                }
            }
        }
        Ok(None)
    }
}

/// The one policy that the logs are of.
pub(super) fn only_policy(logs: &[PathBuf]) -> Result<String, Failed> {
    #[derive(Deserialize)]
    struct Of {
        policy: Option<String>,
    }
    let mut logs = Logs::open(logs)?;
    let mut found = BTreeSet::new();
    let parse = |text: &[u8]| serde_json::from_slice(text).map_err(|error| error.to_string());
    while found.len() < POLICIES
        && let Some(Of { policy }) = logs.read(parse)?
    {
        found.extend(policy);
    }
    let all: Vec<_> = found.into_iter().collect();
    match &all[..] {
        [] => Err(Failed::new(exit::DATA, "the log has no call of a policy")),
        [one] => Ok(one.clone()),
        all => {
            let all = all.join(", ");
            Err(Failed::new(exit::USAGE, format!("say which --policy; the log has: {all}")))
        }
    }
}

/// A log and the older ones that it has grown into, the oldest first.
fn with_older(log: &Path) -> Vec<PathBuf> {
    let older = |number: u32| {
        let mut name = log.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let mut all: Vec<_> = (1..).map(older).take_while(|path| path.is_file()).collect();
    all.reverse();
    all.push(log.to_owned());
    all
}

fn skip_line(file: &mut BufReader<File>) -> io::Result<()> {
    loop {
        let buffer = file.fill_buf()?;
        let (used, is_end) = match memchr::memchr(b'\n', buffer) {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        file.consume(used);
        if is_end {
            return Ok(());
        }
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Failed {
    Failed::new(exit::NO_INPUT, format!("cannot read {}: {error}", path.display()))
}
