//! The backend request channel of vhost-user: what a device's backend asks of its frontend.
//!
//! [`message`] has the layouts of both dialects, the standard one (codes 1 to 10) and crosvm's
//! (1000 to 1007); both are served at once, a code decides. [`RequestChannel`] is the frontend's
//! end for whoever answers later, [`FrontendServer`] the same with a synchronous handler,
//! [`FrontendClient`] the backend's end.
//!
//! A frontend that serves config changes, and a backend that reports one:
//!
//! ```
//! use vmm_vhost::Ack;
//! use vmm_vhost::ChannelConfig;
//! use vmm_vhost::FrontendClient;
//! use vmm_vhost::FrontendHandler;
//! use vmm_vhost::FrontendServer;
//! use vmm_vhost::HandlerResult;
//! use vmm_vhost::Negotiated;
//! use vmm_vhost::Outgoing;
//! use vmm_vhost::message::ProtocolFeatures;
//!
//! struct Changes(u32);
//!
//! impl FrontendHandler for Changes {
//!     fn config_change(&mut self) -> HandlerResult<u64> {
//!         self.0 += 1;
//!         Ok(0)
//!     }
//! }
//!
//! let (frontend, backend) = base::scm::stream_pair()?;
//! let config = ChannelConfig {
//!     negotiated: Negotiated {
//!         protocol_features: ProtocolFeatures::REPLY_ACK | ProtocolFeatures::CONFIG,
//!         ..Negotiated::default()
//!     },
//!     ..ChannelConfig::default()
//! };
//! let mut server = FrontendServer::new(frontend, config, Changes(0))?;
//! let mut client = FrontendClient::new(backend, true);
//!
//! client.send(&Outgoing::config_change(), Ack::Wanted)?;
//! server.handle_readable()?; // never waits
//! client.read_replies(1)?;
//! assert_eq!(server.handler().0, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing here knows tubes, VMs or jails; nothing that a peer sends makes it panic, wait, or use
//! more than a fixed amount of memory and descriptors.

#![forbid(unsafe_code)]

pub mod deviation;
pub mod message;

mod channel;
mod client;
mod connection;
mod gate;
mod refusal;
mod replies;
mod request;
mod server;
mod stats;
#[cfg(test)]
mod testing;

pub use channel::ChannelConfig;
pub use channel::ChannelError;
pub use channel::Flush;
pub use channel::Incoming;
pub use channel::RequestChannel;
pub use channel::Ticket;
pub use client::Ack;
pub use client::ClientError;
pub use client::FrontendClient;
pub use client::Outgoing;
pub use client::Reply;
pub use connection::Connection;
pub use connection::ConnectionError;
pub use connection::Flaw;
pub use connection::Frame;
pub use connection::Received;
pub use gate::Negotiated;
pub use gate::Peer;
pub use refusal::Refusal;
pub use refusal::Refused;
pub use request::BackendRequest;
pub use request::ExternalMap;
pub use request::GpuMap;
pub use request::Iotlb;
pub use request::NotifierArea;
pub use request::ShmemMap;
pub use request::ShmemUnmap;
pub use request::Uuid;
pub use request::VringHostNotifier;
pub use server::FrontendHandler;
pub use server::FrontendServer;
pub use server::HandlerResult;
pub use stats::ChannelStats;
