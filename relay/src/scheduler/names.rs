//! Names as small numbers.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

/// Numbers stay below this, so that twice one still fits: more names than any plan has.
const MAX_NAMES: usize = 1 << 30;

/// Names and their numbers, in the order in which they were first heard.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: Vec<Arc<str>>,
    numbers: BTreeMap<Arc<str>, u32>,
}

impl Names {
    /// The number of a name, new or known.
    pub(super) fn intern(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        assert!(self.names.len() < MAX_NAMES, "too many names");
        let number = self.len();
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }

    pub(super) fn name(&self, number: u32) -> Option<&Arc<str>> {
        self.names.get(number as usize)
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.names.len()).unwrap_or(u32::MAX)
    }
}

/// The number after this one.
pub(super) fn after(number: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(number)
}
