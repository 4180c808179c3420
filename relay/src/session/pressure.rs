//! What a session holds of the relay's memory, and what it is refused for want of it. Floor 3.

use wavegate_smtp::{Enhanced, Reply};

use super::Session;
use crate::{
    budget::{self, Level},
    event::{Busy, Event},
    rates::What,
};

static NO_MEMORY: Reply =
    Reply::fixed(452, Enhanced(4, 3, 1), "wavegate: the relay is short of memory, try again later");
static TOO_OFTEN: Reply = Reply::fixed(
    450,
    Enhanced(4, 7, 1),
    "wavegate: you send too often (client_message_rate), try again later",
);

impl Session {
    /// Has the budget know what the session holds, and `more`.
    pub(super) fn weigh(&mut self, more: usize) {
        let envelope = self.message.as_ref().map_or(0, |message| message.weight());
        let waiting = self.pending.capacity() + self.server.output().len();
        self.share.set(budget::SESSION + self.tls + envelope + waiting + more);
    }

    /// Tells the client to come back later, and says so.
    pub(super) fn refuse_for_now(&mut self, reason: Busy) {
        let client = self.source.client;
        self.relay.emit(&Event::TransactionRefused { client, reason });
        self.server.reply(match reason {
            Busy::Memory => &NO_MEMORY,
            Busy::ClientRate => &TOO_OFTEN,
        });
    }

    /// Why the client may not begin a message now.
    pub(super) fn busy(&self) -> Option<Busy> {
        if self.relay.budget.level() == Level::Full {
            return Some(Busy::Memory);
        }
        let (relay, client) = (&self.relay, self.source.client);
        let admitted = relay.rates.admit(What::Message, client, &relay.look().config.limits);
        (!admitted).then_some(Busy::ClientRate)
    }
}
