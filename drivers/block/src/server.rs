//! Many clients, one device.

use crate::device::{Device, Geometry};
use crate::region::Region;
use crate::session::{JobId, Port, Session};
use alloc::vec::Vec;

/// Requests that one client can have taken from its ring before the others have their turn and ended commands are
/// looked at.
const PATIENCE: u32 = 64;

/// All clients of a device. The program calls [`Self::turn`] when something may have happened, and sleeps after
/// [`Self::idle`].
pub struct Server<D, P> {
    device: D,
    geometry: Geometry,
    sessions: Vec<Session<P>>,
    /// Whose command runs under each name.
    owners: Vec<Option<(usize, JobId)>>,
    /// Names of commands that do not run.
    free: Vec<u16>,
    /// The client whose turn it is.
    next: usize,
}

impl<D: Device, P: Port> Server<D, P> {
    /// A server without clients; `None` if the device promises what cannot be.
    pub fn new(device: D) -> Option<Self> {
        let geometry = device.geometry();
        geometry.is_valid().then(|| Self {
            device,
            geometry,
            sessions: Vec::new(),
            owners: (0..geometry.depth).map(|_| None).collect(),
            free: (0..geometry.depth).rev().collect(),
            next: 0,
        })
    }

    /// Adds a client. `life` differs from the numbers of the driver's lives before this one.
    pub fn add(&mut self, port: P, region: Region, life: u32) {
        self.sessions.push(Session::new(port, region, life));
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Whether the device has something to do.
    pub fn is_busy(&self) -> bool {
        self.free.len() != self.owners.len()
    }

    /// Does everything that can be done now.
    pub fn turn(&mut self) {
        while let Some((id, outcome)) = self.device.poll() {
            // A device cannot name what it was not given; if it does, it is not believed.
            if let Some((session, job)) = self.owners.get_mut(id as usize).and_then(Option::take) {
                self.sessions[session].end(job, outcome);
                self.free.push(id);
            }
        }
        self.feed();
        for session in &mut self.sessions {
            session.acknowledge(&self.geometry);
        }
    }

    /// Gives the device commands of all clients in turn, until it or they have enough.
    fn feed(&mut self) {
        let count = self.sessions.len();
        let (mut started, mut without) = (false, 0);
        while without < count && !self.free.is_empty() {
            let session = self.next;
            self.next = (session + 1) % count;
            let Some((job, command)) = self.sessions[session].next(&self.geometry, PATIENCE) else {
                without += 1;
                continue;
            };
            without = 0;
            let Some(id) = self.free.pop() else { break };
            self.owners[id as usize] = Some((session, job));
            self.device.submit(id, &command);
            started = true;
        }
        if started {
            self.device.start();
        }
    }

    /// Announces to all clients that the driver will wait; false if there is something to do already.
    pub fn idle(&mut self) -> bool {
        let full = self.free.is_empty();
        // All of them are told, whatever the first says.
        let busy = self.sessions.iter_mut().filter_map(|session| (!session.idle(full)).then_some(())).count();
        busy == 0
    }
}

#[cfg(test)]
mod tests;
