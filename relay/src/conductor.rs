//! Who drives the waves: freezes by the clock, waits for barriers, probes, releases, and does
//! what operators order. Floor 3.

pub mod order;
pub mod status;
