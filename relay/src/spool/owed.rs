//! What could not be written and must be all the same: removals, states, values. Of each thing
//! only the last word counts, so however long a disk fails, this has at most one operation a
//! message and a value.

use std::collections::HashMap;

use wavegate_spool::{Handle, Op};

use super::Mark;

/// What is owed to the disk.
#[derive(Default)]
pub(super) struct Owed {
    ops: HashMap<Target, (u64, Op)>,
    marks: Vec<Mark>,
    /// Counts what was ever added: the order of what is left.
    added: u64,
}

/// What an operation is about.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Target {
    Message(Handle),
    Value(Vec<u8>),
}

impl Target {
    /// None for operations that are not owed: whoever ordered them waits for the answer.
    fn of(op: &Op) -> Option<Self> {
        match op {
            Op::State { handle, .. } | Op::Remove { handle } => Some(Self::Message(*handle)),
            Op::Value { key, .. } => Some(Self::Value(key.clone())),
            Op::Accept { .. } | Op::SyncJournal => None,
        }
    }
}

impl Owed {
    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.marks.is_empty()
    }

    /// Takes on operations; what they make pointless goes.
    pub(super) fn add(&mut self, ops: impl IntoIterator<Item = Op>, marks: Vec<Mark>) {
        for op in ops {
            let Some(target) = Target::of(&op) else { continue };
            let removed = |(_, old): &(u64, Op)| matches!(old, Op::Remove { .. });
            // What is removed has no state any more.
            if !self.ops.get(&target).is_some_and(removed) {
                self.added += 1;
                self.ops.insert(target, (self.added, op));
            }
        }
        self.marks.extend(marks);
    }

    /// Somebody else has these done now: older ones of the same things must not follow them. A
    /// removal stays: it makes the other fail.
    pub(super) fn drop_older(&mut self, ops: &[Op]) {
        for target in ops.iter().filter_map(Target::of) {
            if !matches!(self.ops.get(&target), Some((_, Op::Remove { .. }))) {
                self.ops.remove(&target);
            }
        }
    }

    /// Gives everything away, in order.
    pub(super) fn take(&mut self) -> (Vec<Op>, Vec<Mark>) {
        let mut ops: Vec<_> = std::mem::take(&mut self.ops).into_values().collect();
        ops.sort_unstable_by_key(|(number, _)| *number);
        (ops.into_iter().map(|(_, op)| op).collect(), std::mem::take(&mut self.marks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(key: &str, value: u8) -> Op {
        Op::Value { key: key.into(), value: Some(vec![value]) }
    }

    fn words(owed: &mut Owed) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let (ops, _) = owed.take();
        let word = |op| match op {
            Op::Value { key, value } => (key, value),
            op => panic!("{op:?}"),
        };
        ops.into_iter().map(word).collect()
    }

    #[test]
    fn only_the_last_word_on_each_thing_is_owed() {
        let mut owed = Owed::default();
        for round in 0..100 {
            owed.add([value("a", round), value("b", round), Op::SyncJournal], Vec::new());
        }
        owed.add([value("a", 200)], Vec::new());
        let all = vec![(b"b".to_vec(), Some(vec![99])), (b"a".to_vec(), Some(vec![200]))];
        assert_eq!(words(&mut owed), all);
        assert!(owed.is_empty());
    }

    #[test]
    fn what_somebody_waits_for_now_is_not_overwritten_later() {
        let mut owed = Owed::default();
        owed.add([value("a", 1), value("b", 1)], Vec::new());
        owed.drop_older(&[value("a", 2)]);
        assert_eq!(words(&mut owed), vec![(b"b".to_vec(), Some(vec![1]))]);
    }
}
