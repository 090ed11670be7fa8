//! A live server on a tiny checkpoint, spoken to over TCP by a client that knows HTTP/1.1 and nothing of the server.

mod answers;
mod anthropic;
mod clients;
mod constraints;
mod energy;
mod figures;
mod hostile;
mod http;
mod life;
mod local;
mod log;
mod reuse;
mod support;
mod tls;
