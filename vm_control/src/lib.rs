//! The tube between a device process and the VMM, and the VMM's memory-mapping service behind it.
//!
//! The service assumes that a device process has been taken over: it checks everything that matters to the VMM itself. It
//! knows nothing of the sockets of backends.

#![forbid(unsafe_code)]

mod extents;
mod limits;
mod own_memory;
mod populate;
mod reason;
mod region_table;
mod report;
mod request;
mod source;
mod vm;

pub mod api;
mod service;

pub use limits::Limits;
pub use reason::Reason;
pub use region_table::Mapping;
pub use region_table::MappingKind;
pub use region_table::Occupied;
pub use region_table::RegionTable;
pub use region_table::UnmapRule;
pub use region_table::Vacancy;
pub use report::Counters;
pub use report::DeviceStats;
pub use report::MappingInfo;
pub use report::Refusal;
pub use report::RequestKind;
pub use request::Generation;
pub use request::MAX_BATCH;
pub use request::RequestBatch;
pub use request::ResponseBatch;
pub use request::VmMemoryDestination;
pub use request::VmMemoryRequest;
pub use request::VmMemoryResponse;
pub use request::VmMemorySource;
pub use service::DeviceConfig;
pub use service::DeviceId;
pub use service::GoneReason;
pub use service::MappingService;
pub use service::RegionConfig;
pub use service::RemovedDevice;
pub use service::ServiceConfig;
pub use service::ServiceError;
pub use service::ServiceEvent;
pub use service::ServiceEvents;
pub use service::ServiceHandle;
pub use vm::Arena;
pub use vm::ArenaVm;
pub use vm::MapOperation;
pub use vm::MapSource;
pub use vm::RegionKey;
pub use vm::Vm;
