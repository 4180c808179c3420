//! The outside world: clocks, entropy, network. Floor 1.
