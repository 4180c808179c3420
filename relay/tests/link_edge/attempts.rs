//! One message: delivered, refused, cut off before and after its END, asked about again.

use std::time::Duration;

use tokio::time::Instant;
use wavegate::{
    attempt::{self, End, Job, Patience},
    names::Endpoint,
    upstream::RehearsalError,
};
use wavegate_link::{Answer, Code, How};
use wavegate_smtp::{Address, Enhanced, ReversePath, Settled};

use super::{
    Edge,
    gateway::{Act, Gateway, Settings, some, taken},
    until,
};

const OK: Enhanced = Enhanced(2, 0, 0);

fn settled(end: &End) -> &Settled {
    match end {
        End::Settled(settled) => settled,
        other => panic!("{other:?}"),
    }
}

fn code(end: &End) -> u16 {
    settled(end).reply.code()
}

fn known(answers: Vec<Answer>) -> Vec<Answer> {
    answers.into_iter().map(|answer| Answer { known: true, ..answer }).collect()
}

#[tokio::test]
async fn a_message_arrives_as_it_is_with_all_that_is_known_of_it() {
    let mut settings = Settings::default();
    settings.offer.dsn = false;
    let gateway = Gateway::start(settings).await;
    let edge = Edge::new(&[gateway.address]);
    let message = edge.message(2, b"Subject: x\r\n\r\nhello\r\n.\r\n");
    let outcome = edge.send(&message).await;
    assert_eq!(settled(&outcome.end).reply.to_string(), "250 2.0.0 taken");
    assert_eq!((outcome.target, message.is_in_doubt()), (Some(gateway.address), false));
    let got = gateway.got().remove(0);
    assert_eq!(got.content, b"Received: from nowhere\r\nSubject: x\r\n\r\nhello\r\n.\r\n");
    let envelope = got.envelope;
    assert_eq!((envelope.id, envelope.size), (message.id.key(), 48));
    assert_eq!(envelope.received, message.id.time().0);
    assert_eq!(envelope.mail.sender.as_str(), "sender@acme.example");
    let to: Vec<_> = envelope.recipients.iter().map(|one| one.recipient.as_str()).collect();
    assert_eq!(to, ["to-0@dest.example", "to-1@dest.example"]);
    let client = envelope.client;
    assert_eq!((client.address.to_string(), client.port), ("192.0.2.7".into(), 4711));
    assert_eq!((client.helo.as_str(), client.extended), ("client.example", true));
    let status = edge.upstream.link_status().unwrap();
    let one = &status.connections[0];
    let path = &one.path;
    assert_eq!((one.gateway.as_str(), path.streams, path.messages), ("gateway.example", 0, 1));
    assert_eq!((&one.incarnation, &one.target), (&"01".repeat(16), &gateway.address.to_string()));
    assert!(path.sent > 0 && path.received > 0 && path.rtt_us > 0 && path.window > 0, "{one:?}");
    assert_eq!((status.resumed, status.known, status.reconnects), (0, 0, 0));
    assert!(!edge.upstream.extensions().unwrap().has(wavegate_smtp::Extension::Dsn));
    assert_eq!(edge.upstream.status().answered, 1);
}

#[tokio::test]
async fn five_hundred_at_once_go_over_one_connection() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Wait(taken()));
    let edge = Edge::new(&[gateway.address]);
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..500_u32 {
        let message = edge.message(1, format!("number {number}\r\n").as_bytes());
        sending.spawn(attempt::run(edge.job(&message)));
    }
    let arrived = until("all are there", || gateway.whole() == 500);
    // They only go on while somebody waits for them.
    let ends = async {
        let mut ends = Vec::new();
        while let Some(outcome) = sending.join_next().await {
            ends.push(code(&outcome.unwrap().end));
        }
        ends
    };
    let (ends, ()) = tokio::join!(ends, async {
        arrived.await;
        assert_eq!(edge.upstream.status().in_use, 500);
        gateway.open();
    });
    assert_eq!(ends, [250; 500]);
    assert_eq!((gateway.connections(), edge.upstream.status().in_use), (1, 0));
}

#[tokio::test]
async fn each_recipient_has_its_own_reply() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| {
        Act::Answer(vec![
            some(How::NextHop, &[2, 0], 250, OK),
            some(How::NextHop, &[1], 550, Enhanced(5, 1, 1)),
            some(How::Gateway, &[3], 451, Enhanced(4, 3, 0)),
        ])
    });
    let edge = Edge::new(&[gateway.address]);
    let outcome = edge.send(&edge.message(4, b"x\r\n")).await;
    let settled = settled(&outcome.end);
    let codes: Vec<_> = (0..4).map(|at| settled.for_recipient(at).code()).collect();
    assert_eq!((codes, edge.doubts()), (vec![250, 550, 250, 451], 0));
}

#[tokio::test]
async fn recipients_that_the_gateway_has_no_room_for_are_for_the_next_time() {
    let mut settings = Settings::default();
    settings.offer.recipients = 3;
    let gateway = Gateway::start(settings).await;
    let edge = Edge::new(&[gateway.address]);
    let outcome = edge.send(&edge.message(5, b"x\r\n")).await;
    let settled = settled(&outcome.end);
    let codes: Vec<_> = (0..5).map(|at| settled.for_recipient(at).code()).collect();
    assert_eq!(codes, [250, 250, 250, 452, 452]);
    assert_eq!(gateway.got()[0].envelope.recipients.len(), 3);
}

#[tokio::test]
async fn what_the_gateway_does_not_take_is_not_sent() {
    let mut settings = Settings::default();
    settings.offer.size = 30;
    let gateway = Gateway::start(settings).await;
    let edge = Edge::new(&[gateway.address]);
    let outcome = edge.send(&edge.message(1, b"longer than that\r\n")).await;
    assert!(matches!(outcome.end, End::Unsupported(_)), "{:?}", outcome.end);
    assert_eq!(code(&edge.send(&edge.message(1, b"x\r\n")).await.end), 250);
    assert_eq!(gateway.got().len(), 1);
}

/// Long ones, from memory and from a file; an empty one.
#[tokio::test]
async fn every_byte_arrives_whatever_the_size() {
    let gateway = Gateway::start(Settings::default()).await;
    let edge = Edge::new(&[gateway.address]);
    for size in [0, 9_000, 700_000, 5_000_000] {
        let body: Vec<u8> = (0..size).map(|at: u32| at.to_be_bytes()[at as usize % 4]).collect();
        let message = edge.message(1, &body);
        assert_eq!(message.parcel.body.as_memory().is_some(), size < 1_000_000);
        assert_eq!(code(&edge.send(&message).await.end), 250);
        let got = gateway.got().pop().unwrap();
        assert!(got.content[24..] == body[..] && got.is_whole, "{size} bytes");
    }
}

#[tokio::test]
async fn a_refusal_at_the_envelope_spares_the_rest() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Early(vec![some(How::Gateway, &[0], 452, Enhanced(4, 3, 1))]));
    let edge = Edge::new(&[gateway.address]);
    let message = edge.message(1, &vec![b'x'; 20_000_000]);
    assert_eq!(code(&edge.send(&message).await.end), 452);
    let sent = edge.upstream.link_status().unwrap().sent;
    assert!(sent < 2_000_000, "{sent} bytes");
    assert_eq!((gateway.whole(), edge.doubts()), (0, 0));
    assert_eq!(edge.upstream.status().in_use, 0);
}

#[tokio::test]
async fn cut_off_before_its_end_a_message_is_sent_anew() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, before| match before {
        0 => Act::CloseAtOnce,
        _ => Act::Answer(taken()),
    });
    let edge = Edge::new(&[gateway.address]);
    // More than fits into the window, so its END cannot have been written.
    let message = edge.message(1, &vec![b'x'; 15_000_000]);
    assert_eq!(code(&edge.send(&message).await.end), 250);
    assert_eq!((gateway.got().len(), gateway.whole(), gateway.connections()), (2, 1, 2));
    let status = edge.upstream.link_status().unwrap();
    assert_eq!((status.resumed, status.reconnects, edge.doubts()), (0, 1, 0));
    assert_eq!(edge.sim.log.count(&["AttemptRetried", "stopping"]), 1);
}

/// The connection is closed behind END; who answers then, and how.
async fn asked_again(then: Vec<Answer>) -> (Edge, Gateway) {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(move |_, before| match before {
        0 => Act::Close,
        _ => Act::Answer(then.clone()),
    });
    let edge = Edge::new(&[gateway.address]);
    let message = edge.message(1, b"x\r\n");
    let outcome = edge.send(&message).await;
    assert_eq!(settled(&outcome.end).reply.to_string(), "250 2.0.0 taken");
    let ids: Vec<_> = gateway.got().iter().map(|got| got.envelope.id).collect();
    assert_eq!(ids, [message.id.key(); 2]);
    assert_eq!((message.is_in_doubt(), edge.upstream.status().in_use), (false, 0));
    (edge, gateway)
}

#[tokio::test]
async fn cut_off_behind_its_end_a_message_is_asked_about_and_known() {
    let (edge, _gateway) = asked_again(known(taken())).await;
    let status = edge.upstream.link_status().unwrap();
    assert_eq!((status.resumed, status.known, status.reconnects), (1, 1, 1));
    assert_eq!(edge.doubts(), 0);
}

#[tokio::test]
async fn what_the_same_gateway_does_not_know_it_has_not_sent_on() {
    let (edge, _gateway) = asked_again(taken()).await;
    let status = edge.upstream.link_status().unwrap();
    assert_eq!((status.resumed, status.known, edge.doubts()), (1, 0, 0));
}

#[tokio::test]
async fn what_a_gateway_may_have_forgotten_is_in_doubt() {
    let forgetful = |answer| Answer { forgetful: true, ..answer };
    let (edge, _gateway) = asked_again(taken().into_iter().map(forgetful).collect()).await;
    assert_eq!(edge.doubts(), 1);
}

/// Killed behind END, another process comes in its place and answers.
async fn killed(then: Vec<Answer>) -> Edge {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Nothing);
    let edge = Edge::new(&[gateway.address]);
    let message = edge.message(1, b"x\r\n");
    let (outcome, _second) = tokio::join!(edge.send(&message), async {
        until("the first has it", || gateway.whole() == 1).await;
        let port = gateway.kill();
        let settings = Settings { port, incarnation: 2, ..Settings::default() };
        let second = Gateway::start(settings).await;
        second.script(move |_, _| Act::Answer(then.clone()));
        second
    });
    assert_eq!(code(&outcome.end), 250);
    edge
}

#[tokio::test]
async fn another_process_that_does_not_know_a_message_leaves_it_in_doubt() {
    let edge = killed(taken()).await;
    assert_eq!(edge.doubts(), 1, "{:?}", edge.sim.log.lines());
    assert_eq!(edge.upstream.link_status().unwrap().resumed, 1);
}

#[tokio::test]
async fn another_process_that_knows_a_message_leaves_no_doubt() {
    let edge = killed(known(taken())).await;
    assert_eq!(edge.doubts(), 0);
    assert_eq!(edge.upstream.link_status().unwrap().known, 1);
}

#[tokio::test]
async fn a_gateway_that_never_comes_back_leaves_it_in_doubt() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Nothing);
    let edge = Edge::with(&[gateway.address], |config| {
        config.final_timeout = Duration::from_secs(3);
    });
    let message = edge.message(1, b"x\r\n");
    let begun = Instant::now();
    let (outcome, ()) = tokio::join!(edge.send(&message), async {
        until("it has it", || gateway.whole() == 1).await;
        gateway.kill();
        // It holds no place while it waits for nobody.
        until("its place is free", || edge.upstream.status().in_use == 0).await;
        assert!(message.is_in_doubt());
    });
    assert!(matches!(outcome.end, End::InDoubt(_)), "{:?}", outcome.end);
    let took = begun.elapsed();
    assert!((2..6).contains(&took.as_secs()), "{took:?}");
    assert!(edge.upstream.is_down());
}

#[tokio::test]
async fn the_next_hops_doubt_is_told() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Answer(vec![some(How::InDoubt, &[0], 451, Enhanced(4, 4, 2))]));
    let edge = Edge::new(&[gateway.address]);
    let outcome = edge.send(&edge.message(1, b"x\r\n")).await;
    assert_eq!((code(&outcome.end), edge.doubts()), (451, 1));
}

/// A gateway that answers all messages but the first at once.
async fn slow_at_first() -> (Gateway, Edge) {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, before| match before {
        0 => Act::Wait(taken()),
        _ => Act::Answer(taken()),
    });
    let edge = Edge::new(&[gateway.address]);
    (gateway, edge)
}

#[tokio::test]
async fn no_message_begins_where_the_gateway_stops_and_those_under_way_end() {
    let (gateway, edge) = slow_at_first().await;
    let (first, second) = (edge.message(1, b"1\r\n"), edge.message(1, b"2\r\n"));
    let (outcome, ()) = tokio::join!(edge.send(&first), async {
        until("the first is there", || gateway.whole() == 1).await;
        gateway.say_stopping().await;
        // Until it is heard the old one is as good as any.
        loop {
            let before = gateway.got().len();
            assert_eq!(code(&edge.send(&second).await.end), 250);
            if gateway.got()[before].connection == 1 {
                break;
            }
        }
        gateway.open();
    });
    assert_eq!(code(&outcome.end), 250);
    assert_eq!((gateway.got()[0].connection, edge.doubts()), (0, 0));
    until("the old one is closed", || gateway.book.lock().unwrap().ended.len() == 1).await;
    assert_eq!(edge.upstream.link_status().unwrap().connections.len(), 1);
}

/// What is answered on an old connection says nothing of whether there are others.
#[tokio::test]
async fn answers_of_a_gateway_that_takes_no_more_do_not_make_the_link_up() {
    let (gateway, edge) = slow_at_first().await;
    let (first, second) = (edge.message(1, b"1\r\n"), edge.message(1, b"2\r\n"));
    let (outcome, ()) = tokio::join!(edge.send(&first), async {
        until("the first is there", || gateway.whole() == 1).await;
        gateway.room(0);
        gateway.say_stopping().await;
        // Until it is heard the old one is as good as any.
        while !matches!(edge.send(&second).await.end, End::NoConnection(_)) {}
        assert!(edge.upstream.is_down());
        gateway.open();
    });
    assert_eq!(code(&outcome.end), 250);
    assert!(edge.upstream.is_down());
}

#[tokio::test]
async fn a_connection_beside_others_that_is_refused_makes_nobody_wait() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Wait(taken()));
    gateway.room(1);
    let edge = Edge::with(&[gateway.address], |config| config.connections = 4);
    let begun = Instant::now();
    let mut sending = tokio::task::JoinSet::new();
    for number in 1..=60 {
        sending.spawn(attempt::run(edge.job(&edge.message(1, b"x\r\n"))));
        until("it is there", || gateway.whole() == number).await;
    }
    let refused = gateway.book.lock().unwrap().refused;
    // It is knocked once, and then once in a while.
    let most = 1 + usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!((1..=most).contains(&refused), "{refused} times in {:?}", begun.elapsed());
    assert!(!edge.upstream.is_down());
    gateway.open();
    while let Some(outcome) = sending.join_next().await {
        assert_eq!(code(&outcome.unwrap().end), 250);
    }
    assert_eq!((gateway.connections(), edge.doubts()), (1, 0));
}

/// As many as there are streams; whoever is in doubt beyond that keeps its slot.
#[tokio::test]
async fn messages_in_doubt_are_bounded() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Nothing);
    let edge = Edge::with(&[gateway.address], |config| {
        config.link.as_mut().unwrap().streams = 1;
        config.final_timeout = Duration::from_secs(60);
    });
    let state = || (edge.upstream.link_status().unwrap().in_doubt, edge.upstream.status().in_use);
    let run = |text: &[u8]| tokio::spawn(attempt::run(edge.job(&edge.message(1, text))));
    let first = run(b"1\r\n");
    until("the first is there", || gateway.whole() == 1).await;
    let port = gateway.kill();
    until("the first is in doubt", || state() == (1, 0)).await;
    let gateway = Gateway::start(Settings { port, ..Settings::default() }).await;
    gateway.script(|_, _| Act::Nothing);
    until("it is asked about", || gateway.whole() == 1).await;
    let second = run(b"2\r\n");
    until("the second is there", || gateway.whole() == 2).await;
    let port = gateway.kill();
    until("the second is asked about too", || {
        edge.upstream.link_status().unwrap().connections.is_empty()
    })
    .await;
    let third = Job { patience: Patience::NONE, ..edge.job(&edge.message(1, b"3\r\n")) };
    let end = attempt::run(third).await.end;
    assert!(matches!(end, End::NoConnection(_)), "{end:?}");
    assert_eq!(state(), (1, 1));
    let gateway = Gateway::start(Settings { port, ..Settings::default() }).await;
    for sent in [first, second] {
        assert_eq!(code(&sent.await.unwrap().end), 250);
    }
    assert_eq!((gateway.whole(), state()), (2, (0, 0)));
}

#[tokio::test]
async fn a_stream_of_nonsense_is_stopped_and_its_message_asked_about_while_others_go_on() {
    let mut wrong = Vec::new();
    some(How::NextHop, &[0], 250, OK).write(&mut wrong);
    some(How::NextHop, &[0], 250, OK).write(&mut wrong);
    // No such frame, one beyond its bound, two answers for one recipient; an end without DONE.
    let nonsense = [vec![99; 20], vec![32, 255, 0, 0, 0], wrong];
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(move |_, before| match before {
        0 => Act::Wait(taken()),
        4 => Act::SayAll(vec![32, 0, 0, 0]),
        before => match nonsense.get(before - 1) {
            Some(bytes) => Act::Say(bytes.clone()),
            None => Act::Answer(known(taken())),
        },
    });
    let edge = Edge::new(&[gateway.address]);
    let (other, message) = (edge.message(1, b"1\r\n"), edge.message(1, b"2\r\n"));
    let (outcome, ()) = tokio::join!(edge.send(&other), async {
        until("the other one is there", || gateway.whole() == 1).await;
        assert_eq!(code(&edge.send(&message).await.end), 250);
        gateway.open();
    });
    assert_eq!((code(&outcome.end), gateway.connections()), (250, 1));
    until("all were stopped", || gateway.book.lock().unwrap().stopped.len() == 3).await;
    let codes = [Code::Protocol, Code::TooLarge, Code::Protocol];
    let codes = codes.map(|code| u64::from(code.number()));
    assert_eq!(gateway.book.lock().unwrap().stopped, codes);
    assert_eq!((edge.upstream.link_status().unwrap().resumed, edge.doubts()), (4, 0));
}

#[tokio::test]
async fn a_message_that_is_given_up_behind_its_end_is_asked_about() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, before| match before {
        0 => Act::Reset(Code::Busy),
        _ => Act::Answer(taken()),
    });
    let edge = Edge::new(&[gateway.address]);
    assert_eq!(code(&edge.send(&edge.message(1, b"x\r\n")).await.end), 250);
    assert_eq!((gateway.connections(), edge.doubts()), (1, 0));
    assert_eq!(edge.upstream.link_status().unwrap().resumed, 1);
}

#[tokio::test]
async fn one_that_is_dropped_is_nothing_before_its_end_and_goes_on_behind_it() {
    let gateway = Gateway::start(Settings { streams: 1, ..Settings::default() }).await;
    gateway.script(|_, _| Act::Wait(taken()));
    let edge = Edge::new(&[gateway.address]);
    let long = edge.message(1, &vec![b'x'; 20_000_000]);
    {
        let mut sending = Box::pin(edge.send(&long));
        let begun = until("it has begun", || gateway.got().len() == 1);
        tokio::select! {
            _ = &mut sending => panic!("nobody answers"),
            () = begun => {}
        }
    }
    // There is one stream: so the first one is over.
    let short = edge.message(1, b"x\r\n");
    {
        let mut sending = Box::pin(edge.send(&short));
        let there = until("it is there", || gateway.whole() == 1);
        tokio::select! {
            _ = &mut sending => panic!("nobody answers"),
            () = there => {}
        }
    }
    assert!(!gateway.got()[0].is_whole);
    assert_eq!(gateway.got()[1].envelope.id, short.id.key());
    assert_eq!((edge.upstream.status().in_use, short.is_in_doubt()), (0, true));
}

#[tokio::test]
async fn in_a_window_nobody_is_asked_again() {
    let gateway = Gateway::start(Settings::default()).await;
    gateway.script(|_, _| Act::Wait(Vec::new()));
    let edge = Edge::new(&[gateway.address]);
    let plan = edge.sim.relay.waves.current_owned();
    let acme = plan.instance(plan.index_of("acme").unwrap());
    let message = edge.message(1, b"x\r\n");
    let (outcome, ()) = tokio::join!(edge.send_for(acme, &message), async {
        until("it is there", || gateway.whole() == 1).await;
        assert_eq!(edge.sim.in_flight("acme"), (0, 1, false));
        edge.sim.clock.step(31 * 60 * 1000);
        assert_eq!(edge.sim.in_flight("acme"), (0, 1, false), "its window waits for it");
        // No answers are nonsense: it would be asked again.
        gateway.open();
    });
    let End::InDoubt(error) = outcome.end else { panic!("{:?}", outcome.end) };
    assert!(error.to_string().contains("the window forbids asking again"), "{error}");
    assert_eq!((gateway.whole(), edge.sim.in_flight("acme")), (1, (0, 0, true)));
}

#[tokio::test]
async fn a_gateway_is_pinged_and_rehearsed_without_a_message() {
    let mut settings = Settings::default();
    settings.offer.smtputf8 = false;
    let gateway = Gateway::start(settings).await;
    let edge = Edge::new(&[gateway.address]);
    let target = Endpoint::from(gateway.address);
    let pinged = &edge.upstream.ping(3).await[0];
    assert_eq!((pinged.gateway.as_deref(), &pinged.error), (Some("gateway.example"), &None));
    assert!(pinged.round_trips_us.len() == 3 && pinged.opened_us > 0, "{pinged:?}");
    let address = |text: &str| Address::parse(text).unwrap();
    let time = Duration::from_secs(5);
    let sender = ReversePath::Address(address("postmaster@acme.example"));
    let plain = address("postmaster@dest.example");
    edge.upstream.rehearse(&target, &sender, &plain, time).await.unwrap();
    let foreign = address("postmästare@dest.example");
    let refused = edge.upstream.rehearse(&target, &sender, &foreign, time).await.unwrap_err();
    assert!(matches!(refused, RehearsalError::Unsupported(_)), "{refused}");
    gateway.kill();
    let gone = edge.upstream.rehearse(&target, &sender, &plain, time).await.unwrap_err();
    assert!(gone.to_string().contains("no answer within 1.5s"), "{gone}");
}

#[tokio::test]
async fn a_gateway_with_another_name_gets_nothing() {
    let gateway = Gateway::start(Settings::default()).await;
    let edge = Edge::with(&[gateway.address], |config| {
        let link = config.link.as_mut().unwrap();
        link.name = Some("other.example".to_owned());
    });
    let End::NoConnection(error) = edge.send(&edge.message(1, b"x\r\n")).await.end else {
        panic!("it has no certificate for that name")
    };
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(gateway.got().is_empty() && edge.upstream.is_down());
}
