//! The device's end of the memory tube: a client that waits for each answer, and one that never waits.

use arrayvec::ArrayVec;
use base::AsRawDescriptor;
use base::Protection;
use base::RawDescriptor;
use base::ReadNotifier;
use base::Tube;
use base::TubeError;
use base::TubeResult;
use base::packet::PacketTube;
use base::scm::DescriptorVec;
use base::scm::Wait;
use remain::sorted;

use crate::Generation;
use crate::RequestBatch;
use crate::ResponseBatch;
use crate::VmMemoryDestination;
use crate::VmMemoryRequest;
use crate::VmMemoryResponse;
use crate::VmMemorySource;

/// Why a call of [`VmMemoryClient`] did not do what it was asked to.
#[sorted]
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The service answered something else than one answer.
    #[error("{got} answers to one request")]
    AnswerCount {
        /// How many came.
        got: usize,
    },
    /// The service refused, and nothing changed.
    #[error("refused by the mapping service: {0}")]
    Refused(base::Error),
    /// The tube did not carry the request or the answer.
    #[error("memory tube")]
    Tube(#[from] TubeError),
}

/// Asks the service one thing at a time and waits for the answer.
#[derive(Debug)]
pub struct VmMemoryClient {
    tube: PacketTube,
    generation: Generation,
}

impl VmMemoryClient {
    /// Makes a client of a device's end of the tube.
    pub fn new(tube: Tube, generation: Generation) -> Self {
        Self {
            tube: PacketTube::new(tube),
            generation,
        }
    }

    /// Goes on in another generation, after a reset.
    pub fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// Makes a region ready before its first mapping.
    ///
    /// # Errors
    /// ENXIO if the device has no such region.
    pub fn prepare_shared_memory_region(&mut self, shmid: u8) -> Result<(), ClientError> {
        self.ask(VmMemoryRequest::PrepareRegion { shmid })
    }

    /// Maps `len` bytes of `source` at `dest`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the errno of the cause; nothing is mapped then.
    pub fn register_memory(
        &mut self,
        source: VmMemorySource,
        dest: VmMemoryDestination,
        len: u64,
        prot: Protection,
    ) -> Result<(), ClientError> {
        self.ask(VmMemoryRequest::RegisterMemory {
            source,
            dest,
            len,
            prot,
        })
    }

    /// Removes the mapping that begins at `dest` and was made with `len`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the errno of the cause; the mapping stays then.
    pub fn unregister_memory(
        &mut self,
        dest: VmMemoryDestination,
        len: u64,
    ) -> Result<(), ClientError> {
        self.ask(VmMemoryRequest::UnregisterMemory { dest, len })
    }

    /// Removes all mappings of the device.
    ///
    /// # Errors
    /// ECANCELED in an older generation: they are gone already.
    pub fn unregister_all(&mut self) -> Result<(), ClientError> {
        self.ask(VmMemoryRequest::UnregisterAll)
    }

    fn ask(&mut self, request: VmMemoryRequest) -> Result<(), ClientError> {
        let mut requests = ArrayVec::new();
        requests.push(request);
        self.tube.send(&RequestBatch {
            generation: self.generation,
            requests,
        })?;
        let answer: ResponseBatch = self.tube.recv()?;
        match answer.responses[..] {
            [VmMemoryResponse::Ok] => Ok(()),
            [VmMemoryResponse::Err(error)] => Err(ClientError::Refused(error)),
            ref other => Err(ClientError::AnswerCount { got: other.len() }),
        }
    }
}

/// Collects requests, sends them together, and takes the answers when they are there. Neither waits nor allocates.
///
/// The answers come in the order in which the requests were pushed, over all batches.
#[derive(Debug)]
pub struct BatchClient {
    tube: PacketTube,
    generation: Generation,
    batch: RequestBatch,
}

impl BatchClient {
    /// Makes a client of a device's end of the tube.
    pub fn new(tube: Tube, generation: Generation) -> Self {
        Self {
            tube: PacketTube::new(tube),
            generation,
            batch: RequestBatch::default(),
        }
    }

    /// Goes on in another generation. What is collected already keeps its own and must be sent first: until then
    /// [`BatchClient::is_full`].
    pub fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// Returns whether nothing is collected.
    pub fn is_empty(&self) -> bool {
        self.batch.requests.is_empty()
    }

    /// Returns whether [`BatchClient::push`] would refuse.
    pub fn is_full(&self) -> bool {
        let of_another = !self.is_empty() && self.batch.generation != self.generation;
        of_another || self.batch.requests.is_full()
    }

    /// Collects a request.
    ///
    /// # Errors
    /// The request itself, if [`MAX_BATCH`](crate::MAX_BATCH) are collected already, or some of another generation.
    pub fn push(&mut self, request: VmMemoryRequest) -> Result<(), VmMemoryRequest> {
        if self.is_full() {
            return Err(request);
        }
        self.batch.generation = self.generation;
        self.batch
            .requests
            .try_push(request)
            .map_err(|full| full.element())
    }

    /// Sends what is collected in one packet and closes its descriptors. False means that there is no room in the tube
    /// now and everything stays collected.
    ///
    /// # Errors
    /// [`TubeError::Disconnected`] where the service is gone or has dropped the device.
    pub fn try_send(&mut self) -> TubeResult<bool> {
        if self.is_empty() {
            return Ok(true);
        }
        match self.tube.try_send(&self.batch) {
            Ok(()) => {
                self.batch.requests.clear();
                Ok(true)
            }
            Err(TubeError::WouldBlock) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Drops what is collected, with its descriptors, and returns how many requests that were: the last ones pushed. For when
    /// the tube takes none of them, as while somebody of the same user has too many descriptors under way (`ETOOMANYREFS`).
    pub fn discard(&mut self) -> usize {
        let count = self.batch.requests.len();
        self.batch.requests.clear();
        count
    }

    /// Takes the answers to one batch, if they are there.
    ///
    /// # Errors
    /// [`TubeError::Disconnected`] where the service is gone or has dropped the device.
    pub fn try_recv(&mut self) -> TubeResult<Option<ResponseBatch>> {
        self.recv(Wait::Never)
    }

    /// Waits for the answers to one batch, as long as the tube's receive timeout says; nothing where they did not come in time.
    ///
    /// For when exactly one batch is under way: then the answer is all that can come, and a wait context would only add a system
    /// call to it.
    ///
    /// # Errors
    /// [`TubeError::Disconnected`] where the service is gone or has dropped the device.
    pub fn recv_within_timeout(&mut self) -> TubeResult<Option<ResponseBatch>> {
        self.recv(Wait::Block)
    }

    fn recv(&mut self, wait: Wait) -> TubeResult<Option<ResponseBatch>> {
        // Answers have no descriptors.
        let mut packet = match self.tube.recv_packet(wait, &mut DescriptorVec::<0>::new()) {
            Ok(packet) => packet,
            Err(TubeError::TimedOut | TubeError::WouldBlock) => return Ok(None),
            Err(TubeError::Recv(error)) if error.is_shortage() => return Ok(None),
            Err(error) => return Err(error),
        };
        let batch = packet.take()?;
        packet.finish()?;
        Ok(Some(batch))
    }
}

impl AsRawDescriptor for BatchClient {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.tube.as_raw_descriptor()
    }
}

impl ReadNotifier for BatchClient {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        self.tube.get_read_notifier()
    }
}
