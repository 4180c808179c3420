//! All suites of the relay as one program: wasmtime is linked once. `fixture` and `sim` are shared.
#![allow(unreachable_pub, reason = "nobody uses a program of tests")]

mod contracts;
mod control;
mod fixture;
#[path = "gateway/main.rs"]
mod gateway;
mod guest;
mod hostile_components;
#[path = "link_edge/main.rs"]
mod link_edge;
#[path = "notification/main.rs"]
mod notification;
mod policy;
mod promtool;
mod queue_control;
mod shadow;
mod sim;
mod sim_backlog;
mod sim_direct;
mod sim_names;
#[path = "sim_storm/main.rs"]
mod sim_storm;
mod sim_upstreams;
mod sim_windows;
#[path = "sim_windows_many/main.rs"]
mod sim_windows_many;
mod telemetry;
mod telemetry_waves;
mod wasi;
