//! Links: what is known of them, and whether gateways are there.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::StatusCode,
};
use bytes::Bytes;

use super::{Answer, Control, Failure, Json, asked, wire::Ping};
use crate::links::{Links, Pinged};

/// Pings of one order.
const MOST: u32 = 100;

pub(super) async fn list(State(control): State<Arc<Control>>) -> Answer<Links> {
    Ok(Json(control.relay.links()))
}

/// Asks each gateway of a link, by a connection of its own, whether it is there.
pub(super) async fn ping(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Pinged> {
    let Ping { count } = asked(&body)?;
    if !(1..=MOST).contains(&count) {
        return Err(Failure::asked(format!("count is {count}; give 1 to {MOST}")));
    }
    let upstream = control.relay.look().upstream(&name).cloned();
    let link = upstream.filter(|upstream| upstream.config.link.is_some()).ok_or_else(|| {
        let text = format!("there is no upstream {name:?} of type \"link\"");
        Failure::new(StatusCode::NOT_FOUND, "no_such_link", text)
    })?;
    let targets = link.ping(count).await;
    Ok(Json(Pinged { upstream: name, targets }))
}
