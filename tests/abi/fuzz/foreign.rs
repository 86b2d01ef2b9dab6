//! What belongs to others: objects for which the hostile program gets some permissions, and memory that it may read or
//! not even that. In the end nobody has found more.

use lab::hypercall::{self, Delegation, NewEc, create, create_pd, create_sm, ctrl_pd, flag};
use lab::report::{Outcome, Stop, must};
use lab::spec::{BAD_CAP, BAD_FTR, BAD_PAR, SUCCESS, Selector, TIMEOUT, perm, scd};
use lab::{check, equal, memory, root};

use crate::hostile::place;
use crate::operations::{destroy, move_allowance};

/// Upper half of each word of pages that must never be read by others.
const SECRET: u64 = 0x5ec2_e7ed;
/// Upper half of each word of pages that others may read.
const PUBLIC: u64 = 0x9ab1_1c00;
/// Where objects of others lie that nobody can name: in their object spaces.
const HIDDEN: Selector = 0x3f00;
/// Where capabilities of the hostile program are put in an object space of others.
const VISITOR: Selector = 0x3f08;

/// Pages with a pattern.
#[derive(Clone, Copy)]
pub struct Pages {
    /// Address of the first.
    pub address: u64,
    tag: u64,
}

impl Pages {
    /// Number of them.
    pub const COUNT: u64 = 4;

    fn new(tag: u64) -> Self {
        let pages = Self { address: memory::pages(Self::COUNT), tag };
        pages.words().for_each(|word| memory::poke(word, tag << 32 | word & 0xffff_ffff));
        pages
    }

    fn words(self) -> impl Iterator<Item = u64> {
        (self.address..self.address + Self::COUNT * memory::PAGE).step_by(256)
    }

    fn check(self, what: &str) -> Outcome {
        let changed = self.words().find(|word| memory::peek(*word) != self.tag << 32 | word & 0xffff_ffff);
        check!(changed.is_none(), "{what} pages were written at {changed:x?}");
        Ok(())
    }
}

/// Whether `word` was read from a page that must not be read.
pub fn is_secret(word: u64) -> bool {
    word >> 32 == SECRET
}

/// Protection domains of others, and what is theirs. Selectors are the root object space's.
pub struct Foreign {
    first: Selector,
    /// May be read.
    pub public: Pages,
    secret: Pages,
}

/// Selectors of the objects, from the first.
mod name {
    pub const PD: u64 = 0;
    pub const OBJ: u64 = 1;
    pub const HST: u64 = 2;
    pub const PIO: u64 = 3;
    pub const OTHER: u64 = 4;
    pub const OTHER_OBJ: u64 = 5;
    pub const OTHER_HST: u64 = 6;
    pub const UPS: u64 = 7;
    pub const DOWNS: u64 = 8;
    pub const EC: u64 = 9;
    pub const LOCAL: u64 = 10;
    pub const PT: u64 = 11;
    pub const TRIAL: u64 = 12;
}

/// What the hostile program gets: the object, its selector there, permissions.
const GIFTS: [(u64, Selector, u64); 9] = [
    (name::UPS, 8, perm::UP),
    (name::DOWNS, 9, perm::DOWN),
    (name::PT, 10, perm::CALL),
    (name::EC, 11, perm::CTRL),
    (name::PD, 12, perm::SM),
    (name::OBJ, 13, perm::TAKE),
    (name::OTHER_OBJ, 14, perm::GRANT),
    (name::HST, 15, perm::GRANT),
    (name::OTHER_HST, 16, perm::TAKE),
];

/// Frames that a protection domain of others can pay.
const ALLOWANCE: u64 = 64;
/// Ups before somebody tries to take them.
const COUNT: u64 = 150;

impl Foreign {
    /// Selectors and pages; the objects are made for each episode.
    pub fn new() -> Self {
        // One table of capabilities holds them all.
        Self { first: lab::aligned_selectors(4), public: Pages::new(PUBLIC), secret: Pages::new(SECRET) }
    }

    fn name(&self, index: u64) -> Selector {
        self.first + index
    }

    /// Creates everything, and gives the object space `to` what it may have.
    pub fn create(&self, to: Selector) -> Outcome {
        let n = |index| self.name(index);
        must(create_pd(n(name::PD), root::pd(), create::PD))?;
        must(create_pd(n(name::OTHER), root::pd(), create::PD))?;
        for pd in [name::PD, name::OTHER] {
            must(move_allowance(n(pd), ALLOWANCE))?;
        }
        for (selector, operation) in [(name::OBJ, create::OBJ), (name::HST, create::HST), (name::PIO, create::PIO)] {
            must(create_pd(n(selector), n(name::PD), operation))?;
        }
        must(create_pd(n(name::OTHER_OBJ), n(name::OTHER), create::OBJ))?;
        must(create_pd(n(name::OTHER_HST), n(name::OTHER), create::HST))?;
        must(create_sm(n(name::UPS), n(name::PD), 0))?;
        must(create_sm(n(name::DOWNS), n(name::PD), 0))?;
        let ec = NewEc { pd: n(name::PD), page: 0x5000, cpu: root::cpu(), sp: 0, events: 0x800, flags: 0 };
        must(hypercall::create_ec(n(name::LOCAL), &ec))?;
        must(hypercall::create_ec(n(name::EC), &NewEc { page: 0x6000, flags: flag::EC_GLOBAL, ..ec }))?;
        must(hypercall::create_pt(n(name::PT), n(name::PD), n(name::LOCAL), 0))?;
        memory::grant(self.secret.address, n(name::HST), place::WINDOW, Pages::COUNT, perm::R | perm::W)?;
        memory::grant(self.public.address, n(name::OTHER_HST), place::WINDOW, Pages::COUNT, perm::R)?;
        give(root::obj(), n(name::UPS), n(name::OTHER_OBJ), HIDDEN, perm::ALL)?;
        GIFTS.iter().try_for_each(|(index, selector, mask)| give(root::obj(), n(*index), to, *selector, *mask))
    }

    /// The hostile program is gone, and `found` is where its first `count` capabilities were copied: checks what they
    /// can do, and that nothing has happened to what it had no right to. Then destroys everything.
    pub fn check(&self, found: Selector, count: u64) -> Outcome {
        self.public.check("read-only")?;
        self.secret.check("secret")?;
        for selector in found..found + count {
            self.tries(selector).map_err(|stop| named(stop, selector - found))?;
        }
        self.semaphores(found, count)?;
        let trial = self.name(name::TRIAL);
        must(ctrl_pd(&objects(self.name(name::OBJ), VISITOR, root::obj(), trial, perm::ALL)))?;
        check!(
            hypercall::ctrl_sm(trial, 0, 0) == BAD_CAP,
            "something was put into an object space without permission GRANT"
        );
        for pd in [name::PD, name::OTHER] {
            equal!(destroy(self.name(pd), root::pd()), SUCCESS);
        }
        Ok(())
    }

    /// Everything that no capability at `selector` may do.
    fn tries(&self, selector: Selector) -> Outcome {
        let trial = self.name(name::TRIAL);
        equal!(hypercall::ctrl_pt(selector, 0, 0), BAD_CAP);
        equal!(hypercall::create_pt(trial, root::pd(), selector, 0), BAD_CAP);
        equal!(hypercall::create_sc(trial, root::pd(), selector, scd(1, 1, 0)), BAD_CAP);
        equal!(hypercall::ctrl_sc(selector).0, BAD_CAP);
        let ec = NewEc { pd: selector, page: 0x7000, cpu: root::cpu(), sp: 0, events: 0, flags: 0 };
        equal!(hypercall::create_ec(trial, &ec), BAD_CAP);
        // What follows would be found wrong later if the permission were there.
        check!(create_pd(trial, selector, create::DMA) != BAD_FTR, "permission PD on a protection domain of others");
        let both = hypercall::Delegation { src: selector, dst: selector, ssb: 1, dsb: 0, order: 1, mask: 0, mad: 0 };
        check!(ctrl_pd(&both) != BAD_PAR, "permissions GRANT and TAKE on a space of others");
        // The only space of others that is to be granted to is not that from which something could be taken.
        ctrl_pd(&objects(root::obj(), self.name(name::UPS), selector, VISITOR, perm::ALL));
        if ctrl_pd(&objects(selector, HIDDEN, root::obj(), trial, perm::ALL)) == SUCCESS {
            check!(hypercall::ctrl_sm(trial, 0, 0) == BAD_CAP, "taken from an object space without permission TAKE");
        }
        Ok(())
    }

    fn semaphores(&self, found: Selector, count: u64) -> Outcome {
        let (ups, downs) = (self.name(name::UPS), self.name(name::DOWNS));
        let down = |sm, flags| hypercall::ctrl_sm(sm, flag::SM_DOWN | flags, 1);
        down(ups, flag::SM_ZERO);
        for _ in 0..COUNT {
            equal!(hypercall::ctrl_sm(ups, 0, 0), SUCCESS);
        }
        (found..found + count).for_each(|selector| {
            down(selector, 0);
        });
        for _ in 0..COUNT {
            equal!(down(ups, 0), SUCCESS);
        }
        down(downs, flag::SM_ZERO);
        (found..found + count).for_each(|selector| {
            hypercall::ctrl_sm(selector, 0, 0);
        });
        equal!(down(downs, 0), TIMEOUT);
        Ok(())
    }
}

fn named(stop: Stop, selector: Selector) -> Stop {
    match stop {
        Stop::Failed(place, text) => Stop::Failed(place, alloc::format!("selector {selector:#x}: {text}")),
        stop => stop,
    }
}

fn objects(src: Selector, ssb: Selector, dst: Selector, dsb: Selector, mask: u64) -> Delegation {
    Delegation { src, dst, ssb, dsb, order: 0, mask, mad: 0 }
}

/// Delegates the object capability at `ssb` in object space `src`.
pub fn give(src: Selector, ssb: Selector, dst: Selector, dsb: Selector, mask: u64) -> Outcome {
    must(ctrl_pd(&objects(src, ssb, dst, dsb, mask)))
}
