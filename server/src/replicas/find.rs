//! What one replica knows and nobody remembers which: all are asked.
//!
//! Invariant: that nobody has it is said only where everybody has said so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Replicas;
use super::client::{self, Ask, Broken};
use super::proxy::{REPLICA, passed_back, passed_on};
use crate::body::Body;
use crate::error::ApiError;
use crate::respond::Reply;
use crate::tenant::Tenant;

/// The answer of the replica that does not say 404, else that.
pub(crate) async fn answer(
    replicas: &Arc<Replicas>,
    tenant: Tenant,
    id: &str,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let headers = passed_on(request.headers(), tenant, id);
    let ask = Ask { method: request.method().clone(), target, headers, body: Bytes::new() };
    let mut asked = JoinSet::new();
    for (replica, address) in replicas.addresses() {
        let ask = ask.clone();
        asked.spawn(async move { (replica, timeout(PATIENCE, whole(address, ask)).await) });
    }
    let (mut none, mut silent) = (None, false);
    while let Some(joined) = asked.join_next().await {
        match joined {
            Ok((replica, Ok(Ok((head, body))))) => {
                let unknown = head.status() == StatusCode::NOT_FOUND;
                let mut response = passed_back(head, replica).map(|()| Body::whole(body));
                if !unknown {
                    return Ok(Reply::Made(response));
                }
                response.headers_mut().remove(REPLICA);
                none = Some(response);
            }
            _ => silent = true,
        }
    }
    match none {
        Some(none) if !silent => Ok(Reply::Made(none)),
        _ => Err(ApiError::loading()),
    }
}

async fn whole(address: SocketAddr, ask: Ask) -> Result<(Response<()>, Vec<u8>), Broken> {
    let mut exchange = client::send(address, ask).await?;
    let body = exchange.whole().await?;
    Ok((exchange.response, body))
}

/// What is waited for each.
const PATIENCE: Duration = Duration::from_secs(2);
