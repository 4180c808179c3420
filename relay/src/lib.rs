//! An SMTP relay for migrations: it takes the mail of sending instances and hands it to the
//! old or the new infrastructure, as sandboxed policies and a plan of windows say.
//!
//! `ARCHITECTURE.md` beside this crate has the data path, the floors and a reading order.
//! Modules stand here in the order of their floors; imports point up this list only.

// Floor 0: plain values and pure functions.
pub mod plan;
pub mod message;
pub mod replies;
pub mod envelope;
pub mod notification;
pub mod decision;
pub mod gcra;
pub mod retry;
pub mod event;
// Floor 1: the outside world as traits; configuration.
pub mod world;
pub mod config;
// Floor 2: what speaks to the outside world.
pub mod tls;
pub mod users;
pub mod rotation;
pub mod budget;
pub mod body;
pub mod parcel;
pub mod seen;
pub mod spool;
pub mod portable;
pub mod policy;
pub mod names;
pub mod links;
pub mod upstream;
// Floor 3: what decides.
pub mod rollout;
pub mod waves;
pub mod limits;
pub mod rates;
pub mod answer;
pub mod scheduler;
pub mod queue;
pub mod logins;
pub mod relay;
pub mod generation;
pub mod asking;
pub mod gate;
pub mod attempt;
pub mod delivery;
pub mod handoff;
pub mod conductor;
pub mod session;
// Floor 4: what puts it together.
pub mod listener;
pub mod gateway;
pub mod worker;
pub mod logging;
pub mod event_log;
pub mod decision_log;
pub mod telemetry;
pub mod http;
pub mod page;
pub mod admin;
pub mod audit;
pub mod control;
pub mod api;
pub mod learned;
pub mod service;
pub mod succession;
pub mod process;
pub mod rehearsal;
pub mod trial;
pub mod cli;
