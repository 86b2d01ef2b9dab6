//! One client: its rings, and its requests between them.

use crate::device::{Action, Command, Geometry, Outcome};
use crate::region::Region;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use runtime::block::{
    Completion, CompletionRecord, Hello, IN_FLIGHT, LIFE_MAX, NO_TAG, Operation, Request, RequestRecord, Status,
};
use runtime::ring::Violation;

/// The driver's ends of a client's rings.
pub trait Port {
    /// The next request, if there is one.
    fn receive(&mut self) -> Result<Option<RequestRecord>, Violation>;
    /// Sends a completion; false if there is no space.
    fn send(&mut self, record: &CompletionRecord) -> Result<bool, Violation>;
    /// Wakes the client if it waits for what was sent, or for the space that was made.
    fn notify(&mut self);
    /// Announces that the driver will wait for requests; false if one has come since [`Self::receive`] found none.
    fn await_request(&mut self) -> bool;
    /// Announces that the driver will wait for space; false if there is some. A client that breaks the ring's protocol
    /// is waited for.
    fn await_space(&mut self) -> bool;
}

/// A client's request while it is here.
#[derive(Clone, Copy)]
struct Job {
    tag: u32,
    action: Action,
    force_unit_access: bool,
    /// A flush follows the write, because the device cannot write past its cache.
    flush_after: bool,
    status: Status,
    sector: u64,
    address: u64,
    /// Bytes for which there has been no command yet.
    left: u32,
    /// Commands that run.
    running: u16,
}

/// Name of a job in its session.
pub type JobId = u8;
const _: () = assert!(IN_FLIGHT <= 1 << JobId::BITS);

const NO_JOB: Job = Job {
    tag: NO_TAG,
    action: Action::Flush,
    force_unit_access: false,
    flush_after: false,
    status: Status::Ok,
    sector: 0,
    address: 0,
    left: 0,
    running: 0,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The hello of this life has not been sent.
    Greeting,
    /// Requests are dropped until the client knows this life.
    Waiting,
    /// Requests are served.
    Serving,
    /// What was taken is finished; then a new life begins.
    Finishing,
}

pub struct Session<P> {
    port: P,
    region: Region,
    life: u32,
    state: State,
    jobs: [Job; IN_FLIGHT],
    free: Vec<JobId>,
    /// The job that is being cut into pieces.
    current: Option<JobId>,
    /// Flushes to run: by themselves, or after writes.
    flushes: VecDeque<JobId>,
    /// Ended and not acknowledged yet.
    ended: VecDeque<JobId>,
    /// The last look at the request ring found nothing.
    dry: bool,
    /// Something was taken or sent since the last notice.
    moved: bool,
}

impl<P: Port> Session<P> {
    pub fn new(port: P, region: Region, life: u32) -> Self {
        Self {
            port,
            region,
            life: life.clamp(1, LIFE_MAX),
            state: State::Greeting,
            jobs: [NO_JOB; IN_FLIGHT],
            free: (0..IN_FLIGHT).rev().map(|job| job as JobId).collect(),
            current: None,
            flushes: VecDeque::with_capacity(IN_FLIGHT),
            ended: VecDeque::with_capacity(IN_FLIGHT),
            dry: false,
            moved: false,
        }
    }

    /// The next command of this client, and the job it belongs to. At most `patience` requests are taken from the ring.
    pub fn next(&mut self, geometry: &Geometry, mut patience: u32) -> Option<(JobId, Command)> {
        loop {
            if let Some(id) = self.flushes.pop_front() {
                self.jobs[id as usize].running += 1;
                return Some((id, Command { action: Action::Flush, ..self.piece(id, 0) }));
            }
            if let Some(id) = self.current {
                return Some((id, self.cut(id, geometry)));
            }
            if !self.takes() || patience == 0 {
                return None;
            }
            patience -= 1;
            match self.port.receive() {
                Ok(Some(record)) => self.take(&record, geometry),
                Ok(None) => {
                    self.dry = true;
                    return None;
                }
                // Requests are lost: the client shall send everything again.
                Err(Violation) => self.begin_anew(),
            }
        }
    }

    fn piece(&self, id: JobId, length: u32) -> Command {
        let job = &self.jobs[id as usize];
        let Job { action, force_unit_access, sector, address, .. } = *job;
        Command { action, force_unit_access, sector, address, length }
    }

    /// The next piece of the current job.
    fn cut(&mut self, id: JobId, geometry: &Geometry) -> Command {
        let length = self.jobs[id as usize].left.min(geometry.transfer);
        let command = self.piece(id, length);
        let job = &mut self.jobs[id as usize];
        job.running += 1;
        job.left -= length;
        job.sector += u64::from(length) / runtime::block::SECTOR;
        job.address += u64::from(length);
        if job.left == 0 {
            self.current = None;
        }
        command
    }

    /// Takes up what the client sent.
    fn take(&mut self, record: &RequestRecord, geometry: &Geometry) {
        self.moved = true;
        self.dry = false;
        let request = Request::decode(record);
        if let Ok(Request { operation: Operation::Begin, tag: NO_TAG, sector: life, .. }) = request {
            match life {
                0 => self.begin_anew(),
                life if life == u64::from(self.life) => self.state = State::Serving,
                // It has not read the last hello yet.
                _ => {}
            }
            return;
        }
        if self.state != State::Serving {
            return;
        }
        match request {
            // There is nothing that could name it in a completion.
            Ok(Request { tag: NO_TAG, .. }) | Err(NO_TAG) => {}
            Ok(request) => self.accept(&request, geometry),
            Err(tag) => self.refuse(tag, Status::BadRequest),
        }
    }

    fn accept(&mut self, request: &Request, geometry: &Geometry) {
        let tag = request.tag;
        let action = match request.operation {
            Operation::Begin => return self.refuse(tag, Status::BadRequest),
            Operation::Flush => return self.flush(tag, geometry),
            Operation::Read => Action::Read,
            Operation::Write => Action::Write,
        };
        let (sector, address) = match self.region.check(request, geometry) {
            Ok(place) => place,
            Err(status) => return self.refuse(tag, status),
        };
        let durable = action == Action::Write && request.force_unit_access && geometry.volatile_cache;
        let job = Job {
            tag,
            action,
            force_unit_access: durable && geometry.force_unit_access,
            flush_after: durable && !geometry.force_unit_access,
            sector,
            address,
            left: request.length,
            ..NO_JOB
        };
        self.current = self.enter(job);
    }

    fn flush(&mut self, tag: u32, geometry: &Geometry) {
        let id = self.enter(Job { tag, ..NO_JOB });
        let queue = if geometry.volatile_cache { &mut self.flushes } else { &mut self.ended };
        queue.extend(id);
    }

    fn refuse(&mut self, tag: u32, status: Status) {
        let id = self.enter(Job { tag, status, ..NO_JOB });
        self.ended.extend(id);
    }

    /// Gives the job a name; there is one, or nothing would have been taken from the ring.
    fn enter(&mut self, job: Job) -> Option<JobId> {
        let id = self.free.pop()?;
        self.jobs[id as usize] = job;
        Some(id)
    }

    /// A command of `id` has ended.
    pub fn end(&mut self, id: JobId, outcome: Outcome) {
        let job = &mut self.jobs[id as usize];
        job.running -= 1;
        if outcome == Outcome::Failed {
            // The rest would help nobody.
            (job.status, job.left, job.flush_after) = (Status::MediumError, 0, false);
            if self.current == Some(id) {
                self.current = None;
            }
        }
        if job.running != 0 || job.left != 0 {
            return;
        }
        if core::mem::take(&mut job.flush_after) {
            self.flushes.push_back(id);
        } else {
            self.ended.push_back(id);
        }
    }

    /// Acknowledges what has ended, as far as there is space, says hello if it is time, and wakes the client.
    pub fn acknowledge(&mut self, geometry: &Geometry) {
        while let Some(&id) = self.ended.front() {
            let Job { tag, status, .. } = self.jobs[id as usize];
            if !self.send(&Completion::Done { tag, status }) {
                break;
            }
            self.ended.pop_front();
            self.free.push(id);
        }
        if self.state == State::Finishing && self.free.len() == IN_FLIGHT {
            self.life = self.life % LIFE_MAX + 1;
            self.state = State::Greeting;
        }
        if self.state == State::Greeting {
            let Region { sectors, read_only, .. } = self.region;
            let hello = Hello { life: self.life, sectors, read_only, volatile_cache: geometry.volatile_cache };
            if self.send(&Completion::Hello(hello)) {
                self.state = State::Waiting;
            }
        }
        if core::mem::take(&mut self.moved) {
            self.port.notify();
        }
    }

    fn send(&mut self, completion: &Completion) -> bool {
        let sent = self.port.send(&completion.encode());
        // After a violation, too: the client then sees this side's index.
        self.moved |= sent != Ok(false);
        sent == Ok(true)
    }

    /// Finishes what runs, and then says hello with a new life.
    fn begin_anew(&mut self) {
        self.state = State::Finishing;
    }

    /// Announces what this client is waited for; false if there is something to do already. A device that is `busy`
    /// takes no command before another has ended.
    pub fn idle(&mut self, busy: bool) -> bool {
        let held = !self.ended.is_empty() || self.state == State::Greeting;
        let space = !held || self.port.await_space();
        // Who takes no request waits for a command, or for space.
        let takes = self.takes() && !busy;
        let quiet = !takes || (self.dry && self.port.await_request());
        space && quiet
    }

    fn takes(&self) -> bool {
        matches!(self.state, State::Waiting | State::Serving) && !self.free.is_empty()
    }
}
