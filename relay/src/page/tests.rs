//! The page as a browser shows it: Debian's Chromium, without a window, over a real socket.
//!
//! A second page, served by these tests alone, frames the page (so that it can be as narrow as a
//! phone), waits, runs a probe in it, and leaves what the probe found for the test to read. Time in
//! the browser is virtual: waiting costs nothing. `WAVEGATE_SCREENSHOTS=DIR` keeps the pictures.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod browser;
mod fixture;

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use browser::{Look, get, serve};
use serde_json::json;

use super::{PAGE, POLICY};
use crate::conductor::status::{Source, Status};

fn always(status: Status) -> Source {
    Arc::new(move || status.clone())
}

/// A source that knows how often it was asked before.
fn counting(tell: impl Fn(u32) -> Status + Send + Sync + 'static) -> Source {
    let asked = AtomicU32::new(0);
    Arc::new(move || tell(asked.fetch_add(1, Relaxed)))
}

/// What stands between `<tag>` and `</tag>`, which must be there once.
fn inline(tag: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("\n<{tag}>")).unwrap();
    let (text, rest) = rest.split_once(&format!("</{tag}>")).unwrap();
    assert!(!rest.contains(&format!("<{tag}")), "the page has a second {tag}");
    text
}

fn sha256(text: &str) -> String {
    use std::io::Write as _;
    let mut sum =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = sum.wait_with_output().unwrap();
    let hex = String::from_utf8(output.stdout).unwrap();
    let bytes: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    base64(&bytes)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let mut bits = [0; 3];
        bits[..three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize % 64];
            text.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[test]
fn the_policy_names_the_style_and_the_script_of_the_page() {
    assert_eq!(base64(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw==");
    for tag in ["script", "style"] {
        let source = format!("{tag}-src 'sha256-{}'", sha256(inline(tag)));
        assert!(POLICY.contains(&source), "the page has changed: the policy must have {source}");
    }
}

#[test]
fn the_page_asks_nobody_else_and_makes_no_markup_of_text() {
    // The browser's policy says so too; this names the place.
    for banned in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "@import"]
    {
        assert!(!PAGE.contains(banned), "the page has {banned}");
    }
    let elsewhere = PAGE.replace("http://www.w3.org/2000/svg", "");
    assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"));
}

#[test]
fn both_answers_are_read_only_and_say_what_they_are() {
    let status = fixture::phases();
    serve(always(status.clone()), move |address| {
        let (head, body) = get(address, "GET", "/");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, PAGE);
        for line in [
            "content-type: text/html; charset=utf-8",
            &format!("content-security-policy: {POLICY}"),
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.contains(line), "no {line} in {head}");
        }
        let (head, body) = get(address, "GET", "/status.json");
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        assert_eq!(serde_json::from_str::<Status>(&body).unwrap(), status);
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            for path in ["/", "/status.json"] {
                let (head, _) = get(address, method, path);
                assert!(head.starts_with("HTTP/1.1 405 "), "{method} {path}: {head}");
            }
        }
    });
}

#[test]
fn a_status_that_cannot_be_told_is_an_error_and_no_end() {
    let source = counting(|asked| if asked == 0 { panic!("not now") } else { fixture::three() });
    serve(source, |address| {
        assert!(get(address, "GET", "/status.json").0.starts_with("HTTP/1.1 500 "));
        assert!(get(address, "GET", "/status.json").0.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn every_phase_is_shown_with_what_matters_of_it() {
    let probe = "page.querySelector('.toggle').click(); await sleep(100);
        const card = [...page.querySelectorAll('.card')].find((one) => one.querySelector('h3').textContent === 'prod-02');
        return { text: page.body.innerText, title: page.title, left: card.querySelector('.big b').textContent };";
    let Some(seen) = Look::of("phases", always(fixture::phases())).run(probe) else { return };
    let text = seen.calm()["text"].as_str().unwrap().replace('\u{a0}', " ");
    for expected in [
        "Sending infrastructure upgrade",
        "relay-01.example.net",
        "Everything is held. Nothing leaves this relay: operator: incident 4711",
        "The clock is suspect.",
        "prod-04: probes of 2 of 4 targets fail",
        // Freezing, and blocked.
        "3 attempts in flight",
        "Barrier not reached. Still in flight: prod-07-1 2 waiting for a reply; prod-07-2 1 not \
         committed",
        // Frozen: countdown, barrier, what waits.
        "20 Jan, 06:00–06:45",
        "until it closes",
        "in 0.60 s",
        "12,345 messages",
        "296 MB",
        "24 min",
        // An extension, probes that failed.
        "(extended by 30 min)",
        "2 of 4 failed",
        "RCPT TO: 550 5.7.1 sender not provisioned",
        // Past its end.
        "past its end: waits for an operator",
        // A release.
        "10,110 of 15,230 let out, 5,120 left",
        "until drained, about 06:25",
        "66 %",
        "42 a second",
        // A freeze without a plan, and phases that are over.
        "without a plan",
        "Migrated",
        "Rolled back",
        // Upstreams and the host.
        "degraded, 3 of 4 targets",
        "10.20.0.4:25: connection timed out",
        "8f14e45fceea167a",
        "suspect",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    // The fixture's time stands still, the page's goes on for up to two seconds.
    let left = seen.value["left"].as_str().unwrap();
    assert!(["22:00", "21:59", "21:58"].contains(&left), "{left}");
    assert_eq!(
        seen.value["title"], "(4) relay-01.example.net · Sending infrastructure upgrade",
        "two alerts, hold-all and the clock"
    );
}

#[test]
fn the_timeline_has_its_bars_where_the_windows_are() {
    let probe = "const box = (one) => one.getBoundingClientRect(), at = (one) => box(one).left;
        const item = (id) => [...page.querySelectorAll('.item')].find((one) => one.textContent.includes(id));
        const now = at(page.querySelector('#plot .nowline'));
        const part = (id, kind) => box(item(id).querySelector(kind));
        const gone = part('prod-01', '.window'), stands = part('prod-02', '.window'), comes = part('prod-09', '.window');
        const planned = part('prod-04', '.window'), extra = part('prod-04', '.extra');
        return { order: gone.right < now && stands.left < now && now < stands.right && now < comes.left,
            minute: [stands.width / 45, comes.width / 45],
            extended: Math.abs(extra.left - planned.right) < 2 && Math.abs(extra.width - planned.width) < 2,
            over: Math.abs(part('prod-05', '.over').right - now) < 3,
            drains: Math.abs(part('prod-06', '.drain').right - now) < 3,
            lanes: new Set([...page.querySelectorAll('.item')].map((one) => box(one).top)).size };";
    let Some(seen) = Look::of("timeline", always(fixture::phases())).run(probe) else { return };
    let value = seen.calm();
    for named in ["order", "extended", "over", "drains"] {
        assert_eq!(value[named], true, "{named} in {value}");
    }
    let minute = value["minute"].as_array().unwrap();
    let [one, other] = [minute[0].as_f64().unwrap(), minute[1].as_f64().unwrap()];
    assert!(one > 1.0 && (one - other).abs() < 0.05, "one scale: {value}");
    assert!(value["lanes"].as_u64().unwrap() >= 5, "waves at one time lie below each other");
}

#[test]
fn names_of_strangers_are_text_and_stay_in_their_place() {
    let probe = "for (const one of page.querySelectorAll('.toggle, summary')) one.click();
        await sleep(100);
        return { text: page.body.textContent, pwned: page.title === 'pwned' || !!page.defaultView.pwned,
            images: page.querySelectorAll('img, iframe, script:not(body > script), a[href*=script]').length,
            wide: page.documentElement.scrollWidth - page.documentElement.clientWidth,
            rows: page.querySelectorAll('#waves tr.row').length };";
    for (name, width) in [("hostile", 1280), ("hostile-phone", 360)] {
        let look = Look::of(name, always(fixture::hostile())).width(width);
        let Some(seen) = look.run(probe) else { return };
        let value = seen.calm();
        let text = value["text"].as_str().unwrap();
        assert!(text.contains(fixture::EVIL), "shown as it is");
        assert!(text.contains("\\u{202e}gnp.exe"), "what turns text around is seen");
        assert!(!text.contains('\u{202e}'));
        assert_eq!(value["pwned"], false);
        assert_eq!(value["images"], 0);
        assert_eq!(value["wide"], 0, "at {width} pixels it overflows");
        assert_eq!(value["rows"], 7, "waves of one id are told apart");
    }
}

#[test]
fn what_gets_into_the_page_all_the_same_can_do_nothing() {
    let probe = "const tried = {}, note = (what, run) => { try { run(); tried[what] = 'done'; } catch (error) { tried[what] = error.name; } };
        note('markup', () => { page.body.insertAdjacentHTML('beforeend', '<b>x</b>'); });
        note('script', () => { const one = page.createElement('script'); one.text = 'window.pwned = 1'; page.body.append(one); });
        note('style', () => { const one = page.createElement('style'); one.textContent = 'body { display: none }'; page.head.append(one); });
        let image = page.createElement('img'); image.src = '/frame'; page.body.append(image);
        const elsewhere = await page.defaultView.fetch('http://127.0.0.2:9/').then(() => 'done', (error) => error.name);
        await sleep(500);
        return { tried, elsewhere, pwned: !!page.defaultView.pwned, hidden: getComputedStyle(page.body).display, image: image.naturalWidth };";
    let Some(seen) = Look::of("policy", always(fixture::three())).run(probe) else { return };
    let expected = json!({
        "tried": { "markup": "TypeError", "script": "TypeError", "style": "done" },
        "elsewhere": "TypeError", "pwned": false, "hidden": "block", "image": 0,
    });
    assert_eq!(seen.value, expected);
    // So a page that says nothing on the console has tried nothing of it.
    for directive in ["style-src", "img-src", "connect-src"] {
        assert!(seen.console.contains(directive), "no {directive} in {}", seen.console);
    }
}

#[test]
fn a_phone_needs_no_sideways_scrolling() {
    let probe = "for (const one of page.querySelectorAll('.toggle, summary')) one.click();
        await sleep(100);
        const room = page.documentElement.clientWidth, found = [];
        for (const one of page.querySelectorAll('body *')) {
            if (one.closest('.plot, .vh, .over-map, .capped, thead')) continue;
            const box = one.getBoundingClientRect();
            if (box.width && (box.right > room + 1 || box.left < -1)) found.push(one.tagName + '.' + one.className);
        }
        return { found, wide: page.documentElement.scrollWidth - room };";
    for (name, status) in [
        ("phone-phases", fixture::phases()),
        ("phone-50", fixture::many(50)),
        ("phone-0", fixture::none()),
    ] {
        let Some(seen) = Look::of(name, always(status)).width(360).run(probe) else { return };
        assert_eq!(seen.calm(), &json!({ "found": [], "wide": 0 }), "{name}");
    }
}

#[test]
fn what_upstreams_answer_is_a_rate_after_two_looks() {
    let probe = "const shown = () => [...page.querySelectorAll('#upstreams tr.row')].map((one) => one.cells[2].innerText.trim());
        const first = shown();
        await sleep(7000);
        return { first, later: shown() };";
    let source = counting(fixture::answering);
    let Some(seen) = Look::of("rates", source).seconds(15).run(probe) else { return };
    assert_eq!(seen.value["first"].as_array().unwrap().len(), 2);
    assert_eq!(seen.value["later"], json!(["42/s", "0.0/s"]), "{}", seen.value);
}

#[test]
fn it_says_that_the_data_is_stale_and_since_when() {
    // The server goes while it is asked for the third time.
    let probe = "await sleep(20000);
        const alert = () => page.getElementById('alerts').innerText;
        const first = alert(), live = page.getElementById('live').innerText;
        await sleep(60000);
        return { first, live, said: page.getElementById('say').textContent, later: alert(), title: page.title,
            known: page.body.innerText.includes('12,345'),
            tries: page.defaultView.performance.getEntriesByType('resource').filter((one) => one.name.endsWith('status.json')).length };";
    let look = Look::of("stale", always(fixture::three())).ends_at(3).seconds(90);
    let Some(seen) = look.run(probe) else { return };
    let first = seen.value["first"].as_str().unwrap();
    for expected in ["Stale since 06:23:10 UTC.", "it cannot be reached", "Next try in"] {
        assert!(first.contains(expected), "no {expected:?} in {first:?}");
    }
    assert!(seen.value["live"].as_str().unwrap().starts_with("Stale for "), "{}", seen.value);
    assert!(seen.value["title"].as_str().unwrap().starts_with("Stale: "), "{}", seen.value);
    assert_eq!(seen.value["said"], "The data on this page is stale.");
    assert_eq!(seen.value["known"], true, "what was known stays");
    // After 2, 4, 8, 16 and then 30 seconds: it asks less and less often, and never stops. (On a busy
    // machine some more fit in; without pauses that grow it would be 40.)
    let tries = seen.value["tries"].as_u64().unwrap();
    assert!((6..=12).contains(&tries), "{tries} tries in 83 seconds");
}

#[test]
fn it_recovers_after_errors_and_tells_changes() {
    let source = counting(|asked| match asked {
        0 => fixture::three(),
        1..4 => panic!("the relay cannot tell"),
        _ => fixture::three_later(),
    });
    let probe = "await sleep(7000);
        const bad = page.getElementById('alerts').innerText;
        await sleep(40000);
        return { bad, alerts: page.getElementById('alerts').innerText, live: page.getElementById('live').innerText,
            said: page.getElementById('say').textContent, polite: page.getElementById('say').getAttribute('aria-live'),
            text: page.getElementById('active').innerText };";
    let Some(seen) = Look::of("recovers", source).seconds(55).run(probe) else { return };
    let value = &seen.value;
    assert!(value["bad"].as_str().unwrap().contains("it answers 500"), "{value}");
    assert_eq!(value["alerts"], "");
    assert_eq!(value["live"], "Live");
    assert_eq!(value["polite"], "polite");
    let said = value["said"].as_str().unwrap();
    assert!(said.contains("fresh again") || said.contains("prod-02 is now releasing."), "{said}");
    assert!(value["text"].as_str().unwrap().contains("Releasing"), "{value}");
}

#[test]
fn no_wave_one_wave_and_a_thousand() {
    let probe = "const rows = () => page.querySelectorAll('#waves tr.row').length;
        const input = page.querySelector('#waves input'), first = rows(), nodes = page.querySelectorAll('*').length;
        let found = null, all = null, filtered = null;
        if (input) {
            input.value = 'PROD-0777'; input.dispatchEvent(new page.defaultView.Event('input')); found = rows();
            input.value = 'no such wave'; input.dispatchEvent(new page.defaultView.Event('input'));
            if (!page.getElementById('waves').innerText.includes('No wave is like that.')) found = 'no word';
            input.value = ''; input.dispatchEvent(new page.defaultView.Event('input'));
            [...page.querySelectorAll('.filters button')].find((one) => one.textContent.startsWith('Rolled back')).click();
            filtered = new Set([...page.querySelectorAll('#waves .row .chip')].map((one) => one.textContent)).size;
            page.querySelector('.filters button').click();
            [...page.querySelectorAll('.foot button')].find((one) => one.textContent === 'Show all').click(); all = rows();
            [...page.querySelectorAll('.segments button')].find((one) => one.textContent === 'All').click();
        }
        return { first, found, filtered, all, few: nodes < 6000, bars: page.querySelectorAll('.item').length > 500,
            empty: page.getElementById('waves').innerText.includes('No waves.') };";
    let seen =
        |name, status| Look::of(name, always(status)).run(probe).map(|seen| seen.calm().clone());
    let Some(thousand) = seen("1000", fixture::many(1000)) else { return };
    assert_eq!(
        thousand,
        json!({ "first": 100, "found": 1, "filtered": 1, "all": 1000, "few": true, "bars": true, "empty": false })
    );
    let nothing = json!({ "first": 0, "found": null, "filtered": null, "all": null, "few": true, "bars": false, "empty": true });
    assert_eq!(seen("0", fixture::none()), Some(nothing));
    let one = json!({ "first": 1, "found": null, "filtered": null, "all": null, "few": true, "bars": false, "empty": false });
    assert_eq!(seen("1", fixture::one()), Some(one));
}

#[test]
fn everybody_can_read_it_in_the_light_and_in_the_dark() {
    for (name, dark) in [("light", false), ("dark", true)] {
        let look = Look::of(name, always(fixture::phases())).dark(dark);
        let Some(seen) = look.run(browser::CONTRAST) else { return };
        let value = seen.calm();
        assert_eq!(value["dark"], dark, "{value}");
        assert!(value["checked"].as_u64().unwrap() > 200, "{value}");
        assert_eq!(value["poor"], json!([]), "contrast under WCAG 2.2 AA ({name})");
    }
}

#[test]
fn it_can_be_used_without_eyes_and_without_a_mouse() {
    let probe = "page.querySelector('.toggle').click(); await sleep(100);
        const label = (one) => one.getAttribute('aria-label') || page.getElementById(one.getAttribute('aria-labelledby') ?? '')?.textContent || one.textContent.trim();
        const all = (what) => [...page.querySelectorAll(what)];
        const toggle = page.querySelector('.toggle');
        toggle.focus();
        await sleep(3000);
        const kept = page.activeElement === toggle && toggle.getAttribute('aria-expanded') === 'true';
        return {
            landmarks: ['header', 'main', 'footer', 'h1'].filter((one) => all(one).length !== 1),
            nameless: all('section, button, input, select, [role=group], [role=progressbar]').filter((one) => !(label(one) || one.labels?.length)).map((one) => one.outerHTML.slice(0, 80)),
            headless: all('table').filter((one) => !one.querySelector('thead th[scope=col]') || !(one.caption || one.getAttribute('aria-labelledby'))).length,
            signs: all('.chip').filter((one) => !one.querySelector('svg') || !one.textContent.trim()).length,
            mouse: all('[onclick]').length, kept, lang: page.documentElement.lang };";
    let Some(seen) = Look::of("usable", always(fixture::phases())).run(probe) else { return };
    let expected = json!({ "landmarks": [], "nameless": [], "headless": 0, "signs": 0, "mouse": 0, "kept": true, "lang": "en" });
    assert_eq!(seen.calm(), &expected);
}
