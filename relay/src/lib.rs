//! The relay.

pub mod decision;
pub mod gcra;
pub mod limits;
pub mod message;
pub mod plan;

pub mod config;
pub mod event;
pub mod policy;
pub mod upstream;
pub mod world;
