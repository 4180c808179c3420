//! Names of a simulation: a table that a test writes, and how often it was asked.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::world::{
    BoxFuture,
    resolver::{Answer, Kind, LookupError, Record, Resolver, ResolverSettings, Resolvers},
};

/// A server of names in memory. What is not in it does not exist.
#[derive(Clone, Default)]
pub struct MemoryNames {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    answers: HashMap<(String, Kind), Result<Answer, LookupError>>,
    /// Nobody answers anything.
    silent: bool,
    asked: u64,
}

impl MemoryNames {
    /// A host has these addresses for so many seconds.
    pub fn host(&self, name: &str, addresses: &[&str], ttl: u64) {
        let addresses = addresses.iter().filter_map(|one| one.parse::<IpAddr>().ok());
        let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
        for (kind, addresses) in [(Kind::A, v4), (Kind::Aaaa, v6)] {
            let records: Vec<_> = addresses.into_iter().map(Record::Address).collect();
            let answer = Answer { records, ttl: Duration::from_secs(ttl) };
            let none = answer.records.is_empty();
            self.set(name, kind, if none { Err(LookupError::NoSuchRecord) } else { Ok(answer) });
        }
    }

    /// A domain has these mail exchangers for so many seconds.
    pub fn exchangers(&self, domain: &str, hosts: &[(u16, &str)], ttl: u64) {
        let of = |(preference, host): &(u16, &str)| Record::Exchange {
            preference: *preference,
            host: (*host).to_owned(),
        };
        let records = hosts.iter().map(of).collect();
        let answer = Answer { records, ttl: Duration::from_secs(ttl) };
        self.set(domain, Kind::Mx, Ok(answer));
    }

    /// What one question is answered.
    pub fn set(&self, name: &str, kind: Kind, answer: Result<Answer, LookupError>) {
        self.lock().answers.insert((name.to_owned(), kind), answer);
    }

    /// Whether it answers nothing from now on.
    pub fn silent(&self, silent: bool) {
        self.lock().silent = silent;
    }

    /// Questions so far.
    pub fn asked(&self) -> u64 {
        self.lock().asked
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolvers for MemoryNames {
    fn open(&self, settings: &ResolverSettings) -> Arc<dyn Resolver> {
        let bound =
            settings.timeout.saturating_mul(u32::try_from(settings.attempts).unwrap_or(u32::MAX));
        Arc::new(MemoryResolver { names: self.clone(), bound })
    }
}

struct MemoryResolver {
    names: MemoryNames,
    bound: Duration,
}

impl Resolver for MemoryResolver {
    fn lookup<'a>(
        &'a self,
        name: &'a str,
        kind: Kind,
    ) -> BoxFuture<'a, Result<Answer, LookupError>> {
        Box::pin(async move {
            let answer = {
                let mut table = self.names.lock();
                table.asked += 1;
                let found = table.answers.get(&(name.to_owned(), kind)).cloned();
                (!table.silent).then(|| found.unwrap_or(Err(LookupError::NoSuchName)))
            };
            match answer {
                Some(answer) => answer,
                None => {
                    tokio::time::sleep(self.bound).await;
                    Err(LookupError::NoAnswer(format!("no answer within {:?}", self.bound)))
                }
            }
        })
    }
}
