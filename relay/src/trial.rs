//! Trying a plugin: asking it the questions of cases, and measuring what its answers cost. Floor 4.
//!
//! Owns what a case is, how an answer is compared with what its author expects, and the figures of
//! a plugin. It asks by `policy`, as the relay does, and prints nothing but JUnit's XML: how
//! results look on a terminal is the command line's.
//!
//! ```no_run
//! use wavegate::trial::{Plugin, read};
//!
//! let cases = read("cases".as_ref()).unwrap();
//! let report = Plugin::open("my-policy.wasm".as_ref()).unwrap().test(&cases).unwrap();
//! assert!(report.passed(), "{report}");
//! ```
//!
//! Reading order: `case` (files to cases), `question`, `expect` (what is compared), `plugin` (loading), `run`,
//! `measure`, `junit`; `notation` shows values as a case has them.

mod case;
mod expect;
mod junit;
mod measure;
mod notation;
mod plugin;
mod question;
mod run;

pub use case::{Case, Check, Mistake, Mistakes, Notation, Setup, read};
pub use expect::{Difference, Expected, Problem};
pub use junit::junit;
pub use measure::{Dearest, Figures, HookFigures, NoAnswer, Spread};
pub use plugin::{Plugin, TrialError};
pub use run::{Fault, Report, Tried};
