//! TLS: a certificate and its key from files, and connections that begin with a handshake.
//!
//! Invariant: a handshake takes no longer than the headers of a request may; what is wrong with the files is known before the
//! server listens.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that vouch for it, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// A file without a certificate.
    #[error("{}: no certificate in it", .0.display())]
    NoCertificate(PathBuf),
    /// Certificate and key do not go together, or are of a kind that is not known.
    #[error("{} and {}: {source}", files.certificate.display(), files.key.display())]
    Unusable {
        /// Both.
        files: TlsFiles,
        /// What is wrong.
        source: tokio_rustls::rustls::Error,
    },
}

/// Takes handshakes by the certificate of these files.
pub fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { path, source }
    };
    let certificates = CertificateDer::pem_file_iter(&files.certificate).map_err(failed(&files.certificate))?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.map_err(failed(&files.certificate))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(files.certificate.clone()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(failed(&files.key))?;
    let unusable = |source| TlsError::Unusable { files: files.clone(), source };
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let mut config = config.with_no_client_auth().with_single_cert(certificates, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A connection, with TLS or without.
pub enum Transport {
    /// As it came.
    Plain(TcpStream),
    /// Behind a handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Whether the other side has closed it, or is gone: what the system knows, before anybody has been told.
    pub fn is_closed(&self) -> bool {
        match recv(self.socket(), &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, bytes)) => bytes == 0,
            Err(error) => error != Errno::AGAIN && error != Errno::INTR,
        }
    }

    /// Drops bytes as they came, without a look at them, and says how many; 0 at the end.
    pub async fn discard(&self) -> io::Result<usize> {
        let socket = self.socket();
        let mut unused = vec![0; DISCARDED];
        // Of a stream's bytes none is copied so.
        let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        let discard = || Ok(recv(socket, &mut unused[..], flags)?.1);
        socket.async_io(Interest::READABLE, discard).await
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// Bytes that are dropped at once.
const DISCARDED: usize = 64 << 10;

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Whether it is closed soon, without the runtime's having heard of it: this thread does not let it.
    fn ends(transport: &Transport) -> bool {
        let begun = std::time::Instant::now();
        while !transport.is_closed() && begun.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        transport.is_closed()
    }

    #[tokio::test]
    async fn bytes_are_dropped_and_an_end_is_known_at_once() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let transport = Transport::Plain(listener.accept().await.unwrap().0);
        assert!(!transport.is_closed());
        client.write_all(&[1; 3 * DISCARDED / 2]).await.unwrap();
        // Nor while there is something to read.
        assert!(!transport.is_closed());
        let mut dropped = 0;
        while dropped < 3 * DISCARDED / 2 {
            dropped += transport.discard().await.unwrap();
        }
        assert_eq!(dropped, 3 * DISCARDED / 2);
        assert!(!transport.is_closed());
        drop(client);
        assert!(ends(&transport));
        assert_eq!(transport.discard().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reset_is_an_end() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = listener.accept().await.unwrap().0;
        server.write_all(b"unread").await.unwrap();
        client.readable().await.unwrap();
        drop(client);
        assert!(ends(&Transport::Plain(server)));
    }
}
