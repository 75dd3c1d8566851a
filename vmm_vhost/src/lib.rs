//! The backend request channel of vhost-user: what a device's backend asks of its frontend.
//!
//! [`message`] has the layouts of both dialects, the standard one (codes 1 to 10) and crosvm's
//! (1000 to 1007); both are served at once, a code decides. [`RequestChannel`] is the frontend's
//! end for whoever answers later, [`FrontendServer`] the same with a synchronous handler,
//! [`FrontendClient`] the backend's end.
//!
//! Nothing here knows tubes, VMs or jails; nothing that a peer sends makes it panic, wait, or use
//! more than a fixed amount of memory and descriptors.

#![forbid(unsafe_code)]

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
