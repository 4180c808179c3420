//! The configuration of a storm, drawn from its seed, and as text.

use wavegate::world::Entropy;

pub const INSTANCES: [&str; 3] = ["acme", "globex", "initech"];

/// A seeded choice.
pub struct Dice(Entropy);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Entropy::new(seed))
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.0.next() % limit
    }

    pub fn between(&self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    /// Whether something happens that does so `permille` times of a thousand.
    pub fn chance(&self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    pub fn of<'a, T: ?Sized>(&self, all: &[&'a T]) -> &'a T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }
}

/// From when to when a window is open, in milliseconds after the start.
pub type Window = (u64, u64);

#[derive(Clone, Debug)]
pub struct Settings {
    limits: String,
    upstreams: [String; 2],
    throttle: String,
    spool: String,
    /// By instance.
    pub windows: [Option<Window>; 3],
    lead: u64,
}

impl Settings {
    pub fn draw(dice: &Dice) -> Self {
        let mut settings = Self::calm();
        settings.redraw(dice);
        settings.lead = dice.between(1, 60);
        settings.windows[0] = Some(window(dice));
        settings.windows[1] = dice.chance(500).then(|| window(dice));
        settings
    }

    /// What an operator may change in a reload.
    pub fn redraw(&mut self, dice: &Dice) {
        self.limits = format!(
            "direct_wait = '{}ms'\ndirect_deadline = '{}s'\ndirect_queue = {}\n\
             spool_attempts = {}\nmessage_memory = '{}KiB'\n",
            dice.of(&[&1, &50, &200, &2000]),
            dice.of(&[&1, &5, &20, &60]),
            dice.of(&[&1, &10, &1000]),
            dice.of(&[&1, &4, &256]),
            dice.of(&[&4, &64]),
        );
        self.upstreams = [upstream(dice), upstream(dice)];
        self.throttle = match dice.below(4) {
            0 => "{ rate = '1/s', burst = 5 }".to_owned(),
            1 => "{ concurrency = 2 }, { per = ['upstream'], rate = '5/s', burst = 1 }".to_owned(),
            _ => "{ per = ['upstream', 'recipient-domain'], rate = '5000/s', burst = 500 }".into(),
        };
        self.spool = match dice.below(3) {
            0 => format!("release_rate = {}\nrelease_ramp = '20s'\n", dice.between(1, 20)),
            _ => String::new(),
        };
    }

    /// Moves, makes or removes a window, as a change of the plan does.
    pub fn replan(&mut self, dice: &Dice, now: u64) {
        let at = usize::try_from(dice.below(3)).unwrap();
        self.windows[at] = match (dice.below(4), self.windows[at]) {
            (0, _) => None,
            (1, Some((opens, _))) => Some((opens, opens + dice.between(1, 20) * 60_000)),
            // At once, which brings it forward.
            (2, _) => Some((now, now + dice.between(1, 600) * 1000)),
            _ => Some(window(dice)),
        };
    }

    /// When everything is over: nothing held, all upstreams quick.
    pub fn calm() -> Self {
        Self {
            limits: String::new(),
            upstreams: Default::default(),
            throttle: "{ rate = '5000/s', burst = 500 }".into(),
            spool: String::new(),
            windows: [None; 3],
            lead: 1,
        }
        .with_quick_retries()
    }

    fn with_quick_retries(mut self) -> Self {
        self.upstreams = [(); 2].map(|()| "retry_first = '5s'\nretry_max = '1min'\n".to_owned());
        self
    }

    /// The texts of `relay.toml` and `waves.toml`.
    pub fn text(&self) -> (String, String) {
        let Self { limits, upstreams, throttle, spool, windows, lead } = self;
        let relay = format!(
            "[relay]\nhostname = 'edge-1.example.net'\nplan = 'waves.toml'\n\
             [limits]\ncommand_timeout = '1h'\ndata_timeout = '1h'\n{limits}\n[spool]\n{spool}\n\
             [[listener]]\naddress = '127.0.0.1:2525'\nallow = ['10.0.0.0/8']\n\
             [[upstream]]\nname = 'legacy'\ntargets = ['127.0.0.1:2601']\n{}\n\
             [[upstream]]\nname = 'cloud'\ntargets = ['127.0.0.1:2602', '127.0.0.1:2603']\n{}\n\
             [migration]\nbefore = 'legacy'\nafter = 'cloud'\nprobe = false\n\
             [[policy]]\nplugin = 'builtin:freeze'\n[[policy]]\nplugin = 'builtin:routing'\n\
             [[policy]]\nplugin = 'builtin:throttle'\nsettings = {{ limits = [ {throttle} ] }}\n",
            upstreams[0], upstreams[1]
        );
        let mut plan = format!("freeze_lead = '{lead}s'\n");
        for (number, name) in (1..).zip(INSTANCES) {
            plan += &format!(
                "[[instance]]\nname = '{name}'\nproduct = 'p'\nenvironment = 'prod'\n\
                 match = {{ clients = ['10.0.{number}.0/24'], senders = ['{name}.example'] }}\n"
            );
        }
        for (name, window) in INSTANCES.iter().zip(windows) {
            let Some((opens, closes)) = window else { continue };
            plan += &format!(
                "[[wave]]\nid = 'w-{name}'\nenvironment = 'prod'\ninstances = ['{name}']\n\
                 opens = '{}'\ncloses = '{}'\n",
                time(*opens),
                time(*closes)
            );
        }
        (relay, plan)
    }
}

/// A window of an hour's storm: whole seconds, some minutes long.
fn window(dice: &Dice) -> Window {
    let opens = dice.between(60, 3000) * 1000;
    (opens, opens + dice.between(10, 1200) * 1000)
}

fn upstream(dice: &Dice) -> String {
    format!(
        "handoff = '{}'\ndeferred = '{}'\nconnections = {}\nmessages_per_connection = {}\n\
         connect_timeout = '{}s'\nreply_timeout = '{}s'\nfinal_timeout = '{}s'\n\
         eject_after = {}\neject_for = '1s'\neject_max = '30s'\ndirect_budget = '{}'\n\
         retry_first = '{}s'\nretry_max = '5min'\nexpire = '{}'\n",
        dice.of(&["auto", "auto", "auto", "direct", "queued"]),
        dice.of(&["spool", "spool", "pass"]),
        dice.of(&[&1, &2, &5, &20]),
        dice.of(&[&1, &3, &1000]),
        dice.of(&[&1, &5]),
        dice.of(&[&5, &20]),
        dice.of(&[&10, &60, &300]),
        dice.of(&[&1, &5]),
        dice.of(&["100ms", "1h"]),
        dice.of(&[&2, &30]),
        dice.of(&["120h", "120h", "20min"]),
    )
}

/// A time of the plan.
fn time(ms: u64) -> String {
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hours, minutes) = (5 + seconds / 3600, seconds / 60 % 60);
    format!("2026-01-20T{hours:02}:{minutes:02}:{:02}.{ms:03}Z", seconds % 60)
}
