//! A line: messages that wait for the same thing, in a deficit round robin over flows.
//!
//! A flow is the new mail or the backlog of one instance. The form used here keeps *debts*
//! (surplus round robin): a flow whose turn comes sends one message, and pays for what the
//! message cost beyond one unit by letting as many of its next turns pass. So flows of small
//! messages alternate one by one, and a flow of large messages gets as much as the others.
//!
//! Which message is in which line is the parent's business.

use std::collections::VecDeque;

use super::{
    cells::{Cell, Cells, List},
    entry::{InstanceKey, Slot, Wait},
};

/// Octets that cost one unit beyond the first: about where the cost of a delivery stops being
/// that of its commands and becomes that of its data.
const UNIT_OCTETS: u64 = 64 * 1024;

/// A flow, by number: twice the instance's, and one more for the backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FlowKey(u32);

#[derive(Debug)]
struct Flow {
    key: FlowKey,
    list: List,
    /// Turns to let pass.
    debt: u32,
}

/// Messages that wait for one thing.
#[derive(Debug)]
pub(super) struct Line {
    /// What they wait for.
    pub(super) wait: Wait,
    /// By key. A flow that ran empty stays until its turn comes and its debt is paid.
    flows: Vec<Flow>,
    /// The turns; holds each flow once.
    ring: VecDeque<FlowKey>,
    len: usize,
}

fn flow_of(instance: InstanceKey, in_backlog: bool) -> FlowKey {
    FlowKey(instance.0 * 2 + u32::from(in_backlog))
}

fn key_of(cell: &Cell) -> FlowKey {
    flow_of(cell.entry.instance, cell.in_backlog)
}

/// Units beyond the first.
fn surplus(size: u64) -> u32 {
    u32::try_from(size / UNIT_OCTETS).unwrap_or(u32::MAX)
}

impl Line {
    pub(super) fn new(wait: Wait) -> Self {
        Self { wait, flows: Vec::new(), ring: VecDeque::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a message at the end of its flow.
    pub(super) fn push(&mut self, cells: &mut Cells, slot: Slot) {
        let key = key_of(cells.at(slot));
        let at = match self.find(key) {
            Ok(at) => at,
            Err(at) => {
                self.flows.insert(at, Flow { key, list: List::default(), debt: 0 });
                self.ring.push_back(key);
                at
            }
        };
        self.flows[at].list.push(cells, slot);
        self.len += 1;
    }

    /// Takes out the message whose turn it is.
    pub(super) fn pop(&mut self, cells: &mut Cells) -> Option<Slot> {
        if self.len == 0 {
            return None;
        }
        let mut passed = 0;
        loop {
            let key = *self.ring.front().expect("a line with messages has flows");
            let at = self.find(key).expect("the ring names only flows that exist");
            let flow = &mut self.flows[at];
            if flow.debt > 0 {
                if passed == self.ring.len() {
                    self.skip_rounds();
                    passed = 0;
                    continue;
                }
                flow.debt -= 1;
                passed += 1;
                self.ring.rotate_left(1);
                continue;
            }
            let Some(slot) = flow.list.first() else {
                self.flows.remove(at);
                self.ring.pop_front();
                passed = 0;
                continue;
            };
            flow.list.unlink(cells, slot);
            flow.debt = surplus(cells.at(slot).entry.size);
            self.ring.rotate_left(1);
            self.less();
            return Some(slot);
        }
    }

    /// Takes out a message that stands in this line.
    pub(super) fn unlink(&mut self, cells: &mut Cells, slot: Slot) {
        let key = key_of(cells.at(slot));
        let at = self.find(key).expect("a message of this line has a flow here");
        self.flows[at].list.unlink(cells, slot);
        self.less();
    }

    /// The messages, flow by flow.
    pub(super) fn slots(&self, cells: &Cells) -> impl Iterator<Item = Slot> {
        self.flows.iter().flat_map(|flow| flow.list.slots(cells))
    }

    fn less(&mut self) {
        self.len -= 1;
        if self.len == 0 {
            self.flows.clear();
            self.ring.clear();
        }
    }

    /// All flows in debt: lets as many rounds pass at once as bring a message's turn.
    fn skip_rounds(&mut self) {
        let waiting = self.flows.iter().filter(|flow| !flow.list.is_empty());
        let rounds = waiting.map(|flow| flow.debt).min().unwrap_or(0);
        for flow in &mut self.flows {
            flow.debt = flow.debt.saturating_sub(rounds);
        }
    }

    fn find(&self, key: FlowKey) -> Result<usize, usize> {
        self.flows.binary_search_by_key(&key, |flow| flow.key)
    }
}
