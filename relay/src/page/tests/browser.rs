//! A browser that looks at the page, and what it found there.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, http::header::CONTENT_TYPE, response::IntoResponse, routing};
use serde_json::Value;
use tokio::{net::TcpListener, sync::Notify};

use crate::{
    conductor::status::Source,
    http::{self, Bounds},
    page::router,
};

const BOUNDS: Bounds =
    Bounds { what: "a test's page", connections: 64, timeout: Duration::from_secs(60) };
/// Virtual time in the browser, unless a probe waits longer.
const SECONDS: u32 = 10;
/// Real seconds after which a browser hangs.
const PATIENCE: &str = "90";
/// What `timeout` ends with where it had to end it.
const TIMED_OUT: i32 = 124;

/// Every text that is seen must stand out from what is behind it: WCAG 2.2, 1.4.3.
pub(super) const CONTRAST: &str = r"
    for (const one of page.querySelectorAll('.toggle, summary')) one.click();
    await sleep(100);
    const parse = (text) => { const [r, g, b, a] = text.match(/[\d.]+/g).map(Number); return { rgb: [r, g, b], a: a ?? 1 }; };
    const light = ([r, g, b]) => { const part = (c) => { c /= 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
        return .2126 * part(r) + .7152 * part(g) + .0722 * part(b); };
    const style = (one) => page.defaultView.getComputedStyle(one);
    const behind = (one) => {
        // A label of the timeline lies on its bar, which is no ancestor.
        const bar = one.closest('.label.in')?.parentElement.querySelector('.window');
        const layers = [];
        for (let at = bar ?? one; at; at = at.parentElement) { const { rgb, a } = parse(style(at).backgroundColor); layers.push([rgb, a]); if (a === 1) break; }
        return layers.reverse().reduce((under, [rgb, a]) => rgb.map((c, i) => c * a + under[i] * (1 - a)), [255, 255, 255]);
    };
    const poor = []; let checked = 0;
    for (const one of page.querySelectorAll('body *')) {
        const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || one.closest('.vh, .skip, script, noscript, [hidden]') || !one.getClientRects().length) continue;
        const { color, fontSize, fontWeight } = style(one), { rgb, a } = parse(color), back = behind(one);
        const ink = rgb.map((c, i) => c * a + back[i] * (1 - a));
        const [high, low] = [light(ink), light(back)].sort((x, y) => y - x), ratio = (high + .05) / (low + .05);
        const large = parseFloat(fontSize) >= 24 || (parseFloat(fontSize) >= 18.66 && Number(fontWeight) >= 700);
        checked += 1;
        if (ratio < (large ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)} ${one.tagName}.${one.className}: ${one.textContent.slice(0, 30)}`);
    }
    return { poor: [...new Set(poor)], checked, dark: light(parse(style(page.body).backgroundColor).rgb) < .2 };";

/// What a browser is to do.
pub(super) struct Look {
    name: &'static str,
    source: Source,
    width: u32,
    dark: bool,
    seconds: u32,
    ends_at: Option<u32>,
}

/// What it found.
pub(super) struct Seen {
    /// What the probe returned.
    pub(super) value: Value,
    /// What was said on the console: errors of scripts, of the policy, of the network.
    pub(super) console: String,
}

impl Seen {
    /// The same, of a page that had nothing to complain about.
    #[track_caller]
    pub(super) fn calm(&self) -> &Value {
        assert_eq!(self.console, "", "said on the console");
        &self.value
    }
}

impl Look {
    pub(super) fn of(name: &'static str, source: Source) -> Self {
        Self { name, source, width: 1280, dark: false, seconds: SECONDS, ends_at: None }
    }

    pub(super) fn width(self, width: u32) -> Self {
        Self { width, ..self }
    }

    pub(super) fn dark(self, dark: bool) -> Self {
        Self { dark, ..self }
    }

    /// Virtual time until the browser closes.
    pub(super) fn seconds(self, seconds: u32) -> Self {
        Self { seconds, ..self }
    }

    /// The server goes, and its port with it, when it is asked for the status the `nth` time.
    pub(super) fn ends_at(self, nth: u32) -> Self {
        Self { ends_at: Some(nth), ..self }
    }

    /// Runs `probe`, the body of an asynchronous function of `page` (the document) and
    /// `sleep` (milliseconds), once the page has asked twice. None where there is to be no browser.
    pub(super) fn run(self, probe: &str) -> Option<Seen> {
        let program = chromium()?;
        let Self { source, ends_at, .. } = &self;
        let (source, ends_at) = (Arc::clone(source), *ends_at);
        let end = Arc::new(Notify::new());
        let (asked, over) = (AtomicU32::new(0), Arc::clone(&end));
        let source: Source = Arc::new(move || {
            if ends_at.is_some_and(|nth| asked.fetch_add(1, Relaxed) + 1 >= nth) {
                over.notify_one();
            }
            source()
        });
        let frame = frame(self.width, probe);
        let frame =
            async move || ([(CONTENT_TYPE, "text/html; charset=utf-8")], frame).into_response();
        let router = router(source).route("/frame", routing::get(frame));
        Some(serve_until(router, end, move |address| self.look(&program, address)))
    }

    fn look(self, program: &PathBuf, address: SocketAddr) -> Seen {
        let Self { name, width, dark, seconds, .. } = self;
        let home = tempfile::tempdir().unwrap();
        let picture = home.path().join("page.png");
        let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
        let browse = || {
            Command::new("timeout")
                .arg(PATIENCE)
                .arg(program)
                .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
                .args(["--no-first-run", "--disable-sync", "--disable-extensions"])
                // Nobody but the test's server is spoken to.
                .args(["--disable-background-networking", "--disable-component-update"])
                .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
                .args(["--hide-scrollbars", "--enable-logging=stderr", &scheme])
                .arg(format!("--virtual-time-budget={seconds}000"))
                .arg(format!("--window-size={},2400", width.max(500)))
                .arg(format!("--user-data-dir={}", home.path().join("profile").display()))
                .arg("--dump-dom")
                .arg(format!("--screenshot={}", picture.display()))
                .arg(format!("http://{address}/frame"))
                .env("HOME", home.path())
                .output()
                .unwrap()
        };
        // Now and then a browser without a screen stands still for ever.
        let output = Some(browse()).filter(|output| output.status.code() != Some(TIMED_OUT));
        let output = output.unwrap_or_else(browse);
        let said = String::from_utf8_lossy(&output.stderr);
        let document = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {said}", output.status);
        let picture = fs::read(picture).unwrap();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5000, "no picture of the page");
        if let Some(directory) = env::var_os("WAVEGATE_SCREENSHOTS") {
            fs::write(PathBuf::from(directory).join(format!("{name}.png")), picture).unwrap();
        }
        // The probe's own text holds "found(", the answer comes last.
        let found = document.rsplit_once("<pre>found(").and_then(|(_, rest)| rest.split_once(')'));
        let (found, _) =
            found.unwrap_or_else(|| panic!("the probe did not end: {said}\n{document}"));
        let pair = format!("found={found}");
        let (_, found) = form_urlencoded::parse(pair.as_bytes()).next().unwrap();
        let value: Value = serde_json::from_str(&found).unwrap();
        assert!(!value.is_string(), "{value}: {said}");
        let console = said.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>();
        Seen { value, console: console.join("\n") }
    }
}

/// Serves the page's router while `during` runs.
pub(super) fn serve(source: Source, during: impl FnOnce(SocketAddr) + Send + 'static) {
    serve_until(router(source), Arc::new(Notify::new()), during);
}

fn serve_until<T: Send + 'static>(
    router: Router,
    end: Arc<Notify>,
    during: impl FnOnce(SocketAddr) -> T + Send + 'static,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = end.notified() => {}
                () = http::serve(listener, router, BOUNDS) => {}
            }
        });
        tokio::task::spawn_blocking(move || during(address)).await.unwrap()
    })
}

/// One request; head and body of the answer.
pub(super) fn get(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// A page around the page. What is found stands in it as text that needs no escapes.
fn frame(width: u32, probe: &str) -> String {
    format!(
        "<!doctype html><meta name=color-scheme content='light dark'>
        <style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
        <iframe src='/' width={width} height=2400></iframe>
        <script>
        const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
        addEventListener('load', async () => {{
            let found;
            try {{
                await sleep(3000);
                const page = document.querySelector('iframe').contentDocument;
                found = await (async () => {{ {probe} }})();
            }} catch (error) {{ found = 'the probe failed: ' + error; }}
            const end = document.createElement('pre');
            end.textContent = 'found(' + encodeURIComponent(JSON.stringify(found)).replaceAll('(', '%28').replaceAll(')', '%29') + ')';
            document.body.append(end);
        }});
        </script>"
    )
}

/// The browser; none if `WAVEGATE_SKIP` names it.
fn chromium() -> Option<PathBuf> {
    let skip = env::var("WAVEGATE_SKIP").unwrap_or_default();
    if skip.split([',', ' ']).any(|name| name == "chromium") {
        record();
        return None;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|one| one.join("chromium")).find(|one| one.is_file());
    Some(found.expect(
        "this test needs chromium, which is not installed: tests/run as root installs Debian's \
         package; or name chromium in WAVEGATE_SKIP to skip what needs it",
    ))
}

/// Lets `tests/run` count what was skipped. The test runner names each test's thread after the test.
fn record() {
    let Some(file) = env::var_os("WAVEGATE_SKIPPED_FILE") else { return };
    let thread = std::thread::current();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
    writeln!(file, "wavegate::{} chromium", thread.name().unwrap_or("?")).unwrap();
}
