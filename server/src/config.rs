//! How a server behaves: addresses, limits, keys, timeouts.

use std::time::Duration;

use crate::metrics::Names;
pub use crate::tls::TlsFiles;

/// Settings of a server. Start from [`ServerConfig::default`] and set what differs.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Name or address to listen on.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Certificate and key; plain HTTP without them.
    pub tls: Option<TlsFiles>,
    /// Any of these opens the API; none means that everybody may.
    pub api_keys: Vec<String>,
    /// Names that the Host header may carry besides addresses and `localhost`, while the server listens on the loopback
    /// interface; `*` allows all. Elsewhere every name is taken unless there is a list.
    pub allowed_hosts: Vec<String>,
    /// Origins (`https://NAME[:PORT]`) whose pages may read answers in a browser; `*` is all.
    pub allowed_origins: Vec<String>,
    /// Connections at once, and as many again of addresses that have none.
    pub max_connections: usize,
    /// Bytes of a request body.
    pub max_body: usize,
    /// Bytes of request bodies in memory, all connections together.
    pub max_buffered_bodies: usize,
    /// Bytes of a request's headers.
    pub max_headers: usize,
    /// Bytes of an answer that may wait to be read by its client, as they are kept before they are written.
    pub max_unread: usize,
    /// Requests that may wait for their first step.
    pub max_queued_requests: usize,
    /// Prompt tokens of the requests that wait; one request may exceed it alone.
    pub max_queued_tokens: usize,
    /// Largest `n`.
    pub max_n: usize,
    /// How long a client may take to send the headers of a request, and its body at the least speed.
    pub read_timeout: Duration,
    /// How long a client may leave an answer unread.
    pub write_timeout: Duration,
    /// How long a request may take, if at all.
    pub request_timeout: Option<Duration>,
    /// How long running requests may go on after the first signal.
    pub shutdown_timeout: Duration,
    /// A step that takes longer is taken for a hang (and never less than three times the slowest so far).
    pub step_timeout: Duration,
    /// Silence after which a stream sends a comment.
    pub ping_interval: Duration,
    /// Whose metric names are exported beside our own.
    pub metric_names: Names,
    /// Whether it answers for a server that forwards to it: streams begin with their first token then.
    pub is_replica: bool,
    /// Whether metrics hold what the meters of the machine tell: of several processes that read the same ones, one does.
    pub tells_meters: bool,
    /// Whether every answer carries what it has used, and not only those whose request asks by `x-njoule-energy: true`.
    pub usage_energy: bool,
    /// Whether requests may bring their own chat template.
    pub trust_request_chat_template: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            host: "127.0.0.1".into(),
            port: 8000,
            tls: None,
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            max_connections: 1024,
            max_body: 8 << 20,
            max_buffered_bodies: 64 << 20,
            max_headers: 64 << 10,
            max_unread: 64 << 10,
            max_queued_requests: 64,
            max_queued_tokens: 1 << 20,
            max_n: 8,
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            request_timeout: None,
            shutdown_timeout: Duration::from_secs(25),
            step_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(15),
            metric_names: Names::Vllm,
            is_replica: false,
            tells_meters: true,
            usage_energy: false,
            trust_request_chat_template: false,
        }
    }
}
