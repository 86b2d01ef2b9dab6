//! The backplane: what the vCPUs and the board of one virtual machine tell each other without a lock.
//!
//! Every LAPIC belongs to its vCPU alone ([`crate::lapic`]). Whatever others have for it they put into its inbox,
//! atomically, and its owner collects it; what others must know of it (mode, logical id, priority) its owner publishes
//! there. Whoever put something into an inbox that had no news makes the owner look: it leaves the guest, or wakes.
//!
//! Intel SDM vol. 3A, 11.6.2 (destinations), 11.8.1 (acceptance); 9.4.1 (INIT and start-up IPIs).

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::interrupt::{Delivery, Destination, Message};
use crate::lapic::ApicMode;

/// Most vCPUs of a machine. Their APIC ids are their numbers, so that they fit every destination format.
pub const VCPUS_MAX: usize = 16;

/// A set of vCPUs, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct VcpuSet(u32);

impl VcpuSet {
    /// Nobody.
    pub const EMPTY: Self = Self(0);

    /// One vCPU.
    pub const fn one(index: usize) -> Self {
        Self(1 << index)
    }

    /// All of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether a vCPU is in it.
    pub const fn contains(self, index: usize) -> bool {
        self.0 >> index & 1 != 0
    }

    /// Takes a vCPU out.
    pub const fn without(self, index: usize) -> Self {
        Self(self.0 & !(1 << index))
    }

    /// Whether nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The vCPUs' numbers.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..VCPUS_MAX).filter(move |&index| self.contains(index))
    }
}

/// Bits of [`Inbox::signals`].
mod signal {
    pub const NMI: u32 = 1 << 0;
    pub const INIT: u32 = 1 << 1;
    pub const STARTUP: u32 = 1 << 2;
    /// A message with an illegal vector came.
    pub const ILLEGAL_VECTOR: u32 = 1 << 3;
    /// The 8259A's output rose.
    pub const LINT0: u32 = 1 << 4;
    /// The page of the latest start-up IPI.
    pub const PAGE_SHIFT: u32 = 8;
    pub const PAGE: u32 = 0xff << PAGE_SHIFT;
}

/// What a LAPIC's owner tells those who send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The mode.
    pub mode: ApicMode,
    /// Whether it takes vectors: software-enabled.
    pub takes_vectors: bool,
    /// Whether the destination format is the cluster model.
    pub clustered: bool,
    /// The logical id of xAPIC mode.
    pub logical: u8,
}

impl Route {
    fn pack(self) -> u32 {
        let mode = match self.mode {
            ApicMode::Disabled => 0,
            ApicMode::Xapic => 1,
            ApicMode::X2apic => 2,
        };
        mode | u32::from(self.takes_vectors) << 2 | u32::from(self.clustered) << 3 | u32::from(self.logical) << 8
    }

    fn unpack(bits: u32) -> Self {
        Self {
            mode: match bits & 3 {
                0 => ApicMode::Disabled,
                1 => ApicMode::Xapic,
                _ => ApicMode::X2apic,
            },
            takes_vectors: bits & 1 << 2 != 0,
            clustered: bits & 1 << 3 != 0,
            logical: (bits >> 8) as u8,
        }
    }
}

/// What the owner of an inbox finds in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mail {
    /// Vectors, as in the LAPIC's registers.
    pub vectors: [u32; 8],
    /// Those of them that are level-triggered.
    pub levels: [u32; 8],
    /// An NMI.
    pub nmi: bool,
    /// INIT.
    pub init: bool,
    /// A start-up IPI that came after the last INIT: the page to start at.
    pub startup: Option<u8>,
    /// A message with an illegal vector.
    pub illegal_vector: bool,
    /// The 8259A's output rose.
    pub lint0: bool,
}

/// What others have for one LAPIC. Aligned so that no two share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Inbox {
    news: AtomicBool,
    signals: AtomicU32,
    vectors: [AtomicU32; 8],
    levels: [AtomicU32; 8],
    route: AtomicU32,
    /// Processor priority, as of the owner's last exit that changed it.
    priority: AtomicU32,
}

impl Inbox {
    /// Whether the owner must be made to look; otherwise someone else does that.
    fn announce(&self) -> bool {
        !self.news.swap(true, Ordering::SeqCst)
    }

    fn put_vector(&self, vector: u8, level: bool) {
        let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        if level {
            self.levels[word].fetch_or(bit, Ordering::Relaxed);
        } else {
            self.levels[word].fetch_and(!bit, Ordering::Relaxed);
        }
        self.vectors[word].fetch_or(bit, Ordering::Release);
    }

    fn put_signal(&self, signal: u32) {
        self.signals.fetch_or(signal, Ordering::Release);
    }

    /// INIT forgets start-up IPIs that came before it.
    fn put_init(&self) {
        let update = |signals: u32| Some(signals & !(signal::STARTUP | signal::PAGE) | signal::INIT);
        let _ = self.signals.fetch_update(Ordering::Release, Ordering::Relaxed, update);
    }

    fn put_startup(&self, page: u8) {
        let with_page = signal::STARTUP | u32::from(page) << signal::PAGE_SHIFT;
        let update = |signals: u32| Some(signals & !signal::PAGE | with_page);
        let _ = self.signals.fetch_update(Ordering::Release, Ordering::Relaxed, update);
    }

    fn put(&self, message: &Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority if message.vector < 16 => {
                self.put_signal(signal::ILLEGAL_VECTOR);
            }
            Delivery::Fixed | Delivery::LowestPriority => {
                if self.route().takes_vectors {
                    self.put_vector(message.vector, message.level);
                }
            }
            Delivery::Nmi => self.put_signal(signal::NMI),
            Delivery::Init => self.put_init(),
            Delivery::Startup => self.put_startup(message.vector),
            // There is no SMM; an ExtINT request is served by the 8259A's own line.
            Delivery::Smi | Delivery::ExtInt | Delivery::Reserved => {}
        }
    }

    fn collect(&self) -> Option<Mail> {
        if !self.news.load(Ordering::Relaxed) || !self.news.swap(false, Ordering::SeqCst) {
            return None;
        }
        let signals = self.signals.swap(0, Ordering::Acquire);
        let mut mail = Mail {
            nmi: signals & signal::NMI != 0,
            init: signals & signal::INIT != 0,
            startup: (signals & signal::STARTUP != 0).then_some((signals >> signal::PAGE_SHIFT) as u8),
            illegal_vector: signals & signal::ILLEGAL_VECTOR != 0,
            lint0: signals & signal::LINT0 != 0,
            ..Mail::default()
        };
        for word in 0..8 {
            mail.vectors[word] = self.vectors[word].swap(0, Ordering::Acquire);
            mail.levels[word] = self.levels[word].load(Ordering::Relaxed) & mail.vectors[word];
        }
        Some(mail)
    }

    fn route(&self) -> Route {
        Route::unpack(self.route.load(Ordering::Relaxed))
    }
}

/// The inboxes of a machine's vCPUs, and the lines between board and vCPUs.
#[derive(Debug)]
pub struct Backplane {
    inboxes: Box<[Inbox]>,
    /// Whose turn it is among LAPICs of the same lowest priority.
    turn: AtomicUsize,
    /// Messages that addressed no LAPIC.
    undelivered: AtomicU64,
    /// Level of the 8259A's output, which goes to LINT0 of vCPU 0.
    external: AtomicBool,
    /// Whether vCPU 0 takes it.
    external_wanted: AtomicBool,
    /// The STC value at which the board needs service, which vCPU 0 sees to; `u64::MAX`: never.
    board_deadline: AtomicU64,
}

impl Backplane {
    /// For `vcpus` vCPUs, 1 to [`VCPUS_MAX`].
    pub fn new(vcpus: usize) -> Self {
        Self {
            inboxes: (0..vcpus.clamp(1, VCPUS_MAX)).map(|_| Inbox::default()).collect(),
            turn: AtomicUsize::new(0),
            undelivered: AtomicU64::new(0),
            external: AtomicBool::new(false),
            external_wanted: AtomicBool::new(true),
            board_deadline: AtomicU64::new(u64::MAX),
        }
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.inboxes.len()
    }

    /// All vCPUs.
    pub fn all(&self) -> VcpuSet {
        VcpuSet(((1u64 << self.vcpus()) - 1) as u32)
    }

    /// Sends a message; `sender` is the id of the LAPIC that sent it, if one did. Returns whom to make look.
    pub fn send(&self, message: &Message, sender: Option<u32>) -> VcpuSet {
        let mut addressed = VcpuSet::EMPTY;
        for (index, inbox) in self.inboxes.iter().enumerate() {
            let route = inbox.route();
            if route.mode != ApicMode::Disabled && is_addressed(message.destination, index as u32, route, sender) {
                addressed = addressed.union(VcpuSet::one(index));
            }
        }
        if message.delivery == Delivery::LowestPriority && !addressed.is_empty() {
            addressed = self.lowest_priority(addressed);
        }
        if addressed.is_empty() {
            self.undelivered.fetch_add(1, Ordering::Relaxed);
        }
        let mut wake = VcpuSet::EMPTY;
        for index in addressed.iter() {
            self.inboxes[index].put(message);
            wake = wake.union(self.nudge(index));
        }
        wake
    }

    /// The one of `among` that takes vectors and runs at the lowest priority; in turn, if there are several.
    fn lowest_priority(&self, among: VcpuSet) -> VcpuSet {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let rank = |index: usize| (index + self.vcpus() - turn % self.vcpus()) % self.vcpus();
        let candidates = among.iter().filter(|&index| self.inboxes[index].route().takes_vectors);
        let key = |&index: &usize| (self.inboxes[index].priority.load(Ordering::Relaxed) >> 4, rank(index));
        candidates.min_by_key(key).map_or(VcpuSet::EMPTY, VcpuSet::one)
    }

    /// Says that there is something to see for a vCPU; returns it, unless someone else makes it look already.
    pub fn nudge(&self, index: usize) -> VcpuSet {
        match self.inboxes.get(index) {
            Some(inbox) if inbox.announce() => VcpuSet::one(index),
            _ => VcpuSet::EMPTY,
        }
    }

    /// Whether there is anything to see for a vCPU. One that goes to sleep looks here after it has said so.
    #[inline]
    pub fn has_news(&self, index: usize) -> bool {
        self.inboxes[index].news.load(Ordering::SeqCst)
    }

    /// What has come for a vCPU; `None` if nothing has. Its owner calls this.
    pub fn collect(&self, index: usize) -> Option<Mail> {
        self.inboxes[index].collect()
    }

    /// The owner tells where its LAPIC is to be found.
    pub fn publish(&self, index: usize, route: Route) {
        self.inboxes[index].route.store(route.pack(), Ordering::Relaxed);
    }

    /// The owner tells its processor priority.
    pub fn publish_priority(&self, index: usize, priority: u32) {
        self.inboxes[index].priority.store(priority, Ordering::Relaxed);
    }

    /// Forgets all that waits, at a reset, when no vCPU runs.
    pub fn reset(&self) {
        for index in 0..self.vcpus() {
            let _ = self.collect(index);
        }
        self.external.store(false, Ordering::Relaxed);
        self.board_deadline.store(u64::MAX, Ordering::Relaxed);
    }

    /// Messages that addressed no LAPIC.
    pub fn undelivered(&self) -> u64 {
        self.undelivered.load(Ordering::Relaxed)
    }

    /// Sets the level of the 8259A's output; returns whom to make look.
    pub fn set_external(&self, level: bool) -> VcpuSet {
        self.external.store(level, Ordering::Relaxed);
        if !level {
            return VcpuSet::EMPTY;
        }
        self.inboxes[0].put_signal(signal::LINT0);
        self.nudge(0)
    }

    /// Level of the 8259A's output.
    pub fn external(&self) -> bool {
        self.external.load(Ordering::Relaxed)
    }

    /// vCPU 0 tells whether its LINT0 passes the 8259A's requests on.
    pub fn want_external(&self, wanted: bool) {
        self.external_wanted.store(wanted, Ordering::Relaxed);
    }

    /// Whether the LINT0 of vCPU 0 passes the 8259A's requests on.
    pub fn external_wanted(&self) -> bool {
        self.external_wanted.load(Ordering::Relaxed)
    }

    /// Whether vCPU 0's LAPIC is there at all.
    pub fn has_lapic(&self) -> bool {
        self.inboxes[0].route().mode != ApicMode::Disabled
    }

    /// When the board needs service; `u64::MAX`: never.
    pub fn board_deadline(&self) -> u64 {
        self.board_deadline.load(Ordering::Relaxed)
    }

    /// Sets when the board needs service; whoever has the board calls this. Returns whom to make look: vCPU 0, if that
    /// is sooner than it was.
    pub fn set_board_deadline(&self, deadline: u64) -> VcpuSet {
        if deadline < self.board_deadline.swap(deadline, Ordering::Relaxed) { self.nudge(0) } else { VcpuSet::EMPTY }
    }
}

/// Whether a message is addressed to the LAPIC with `id`.
fn is_addressed(destination: Destination, id: u32, route: Route, sender: Option<u32>) -> bool {
    match destination {
        Destination::Own => sender == Some(id),
        Destination::All => true,
        Destination::Others => sender != Some(id),
        Destination::Physical(physical) => physical == id,
        Destination::Logical(set) => match route.mode {
            ApicMode::X2apic => {
                let logical = logical_x2(id);
                set == u32::MAX || (set >> 16 == logical >> 16 && set & logical & 0xffff != 0)
            }
            _ => {
                let (set, logical) = (set & 0xff, u32::from(route.logical));
                match route.clustered {
                    false => set & logical != 0,
                    true => (set >> 4 == logical >> 4 || set >> 4 == 0xf) && set & logical & 0xf != 0,
                }
            }
        },
    }
}

/// The logical id of x2APIC mode (SDM vol. 3A, 11.12.10.2).
pub const fn logical_x2(id: u32) -> u32 {
    (id & 0xf_fff0) << 12 | 1 << (id & 0xf)
}

#[cfg(test)]
mod tests;
