/*
 * Shootdown and reclamation: ctrl_pd returns only when no CPU can reach the page that it took away, and page tables are freed only when
 * no processor can walk them.
 *
 * A space with two pages, each behind a table of its own. On two CPUs an EC takes a page away, which may be the same
 * page; every CPU uses the space, as a host space or as a guest space, whenever it likes. A CPU's walker fills its TLB
 * and its cache of upper entries (psc) at any time while the space is in use, not only for accesses: it speculates.
 *
 * Interrupts are taken between two uses only, as the kernel runs with interrupts off. A store that a processor may delay
 * past a later load is written behind that load where the code has no barrier.
 *
 * Checked after each step: no running program or guest has a page in the TLB after the call that took it has returned,
 * and no walker can reach a table that was freed. Every call returns: one that hangs is an invalid end state.
 *
 * What stands for what, in microhypervisor/src and microhypervisor/core/src:
 *   take_away           ctrl_pd::memory: Memory::step under the space's lock, then conclude
 *   generation          shootdown::Generation: bump, due, complete
 *   retired, since      memory::Retired: tables that were taken out of the space, and the generation that all CPUs must
 *                       have seen before Memory::free_table frees them
 *   ask, missing        rounds::start and launch; shootdown::Round and Requests
 *   attend              rounds::attend: answer, then finish; an interrupt is lapic::call_attention
 *   enter, host         run::switch_space: Use::announce, then CR3
 *   enter, guest        guest::enter: Use::enter, then the generation is compared
 *   the EC is killed    destroy::stop of an EC whose ctrl_pd was preempted: what it took out stays with the space
 *
 * `cargo xtask models` checks all interleavings of these sizes, and that each fault is found:
 * run USERS=4 GUESTS=4
 * run USERS=5 GUESTS=0
 * run USERS=3 GUESTS=0
 * run USERS=2 GUESTS=2
 * run USERS=1 GUESTS=1
 * long USERS=5 GUESTS=4
 * long USERS=3 GUESTS=3
 * long USERS=7 GUESTS=0
 * fault 1 USERS=4 GUESTS=0: an acknowledgement before the flush
 * fault 2 USERS=4 GUESTS=0: tables are freed before the round
 * fault 3 USERS=4 GUESTS=0: a round also frees the tables that another call took out later
 * fault 4 USERS=4 GUESTS=0: a call that changed nothing itself does not wait
 * fault 5 USERS=4 GUESTS=0: CR3 is loaded before the use is announced
 * fault 6 USERS=4 GUESTS=4: no barrier between announcing the use and looking at the generation
 * fault 7 USERS=4 GUESTS=0: the CPUs to ask are chosen before the entry is written
 * fault 8 USERS=3 GUESTS=0: the calling CPU itself does not flush
 * fault 9 USERS=4 GUESTS=0: the generation is bumped after the lock was released
 * fault 10 USERS=4 GUESTS=4: a guest enters without comparing generations
 * fault 11 USERS=4 GUESTS=0: the last acknowledgement does not tell the caller's CPU
 */

#ifndef FAULT
#define FAULT 0
#endif

/* CPUs that use the space, and those of them that use it as a guest space: a bit for each. */
#ifndef USERS
#define USERS 7
#endif
#ifndef GUESTS
#define GUESTS 4
#endif

#define CPUS    3
#define CALLERS 2

#define NONE  0
#define SPACE 1

#define BIT(n) (1 << (n))

/* The space: a bit for each page. */
byte pages = 3;         /* leaf entries */
byte tables = 3;        /* upper entries */
byte retired;           /* tables that were taken out and not freed yet */
byte since[2];          /* generation in which that was done */
byte freed;             /* tables that were freed */
byte gone;              /* pages that were taken away by calls that have returned */
bit lock;
byte generation = 1;
byte completed = 1;     /* every CPU has seen what happened up to this generation */

/* CPUs. */
bit guest[CPUS];        /* uses the space as a guest space */
byte uses[CPUS];        /* what it says that it uses */
bit inside[CPUS];       /* translations of the space can be used and made */
byte seen[CPUS];        /* generation at the last entry of the guest */
byte tlb[CPUS];
byte psc[CPUS];
byte asked[CPUS];       /* by which CPUs an acknowledgement is wanted */
bit interrupt[CPUS];
byte missing[CPUS];     /* acknowledgements of the round under way */
bit waits[CPUS];        /* the EC is parked */
byte page[CPUS];        /* what the call takes away */
byte due[CPUS];         /* generation that its round completes */
byte returned;          /* calls that are over */

inline inspect() {
    assert(!(inside[0] && (tlb[0] & gone)) && !(inside[1] && (tlb[1] & gone)) && !(inside[2] && (tlb[2] & gone)));
    assert(!(inside[0] && (psc[0] & freed)) && !(inside[1] && (psc[1] & freed)) && !(inside[2] && (psc[2] & freed)))
}

inline flush(c) {
    tlb[c] = 0;
    psc[c] = 0
}

/* Host: announces the root, then loads CR3, which also is a barrier. Guest: announces the root if it is another one, with
   a barrier, and then compares generations. */
inline enter(c) {
    if
    :: atomic { guest[c] ->
#if FAULT == 6
        /* Without barrier: the load overtakes the store. */
        g = generation
        };
        uses[c] = SPACE;
#else
        uses[c] = SPACE
        };
        g = generation;
#endif
        atomic {
            if
#if FAULT != 10
            :: g != seen[c] -> flush(c); seen[c] = g
#endif
            :: else
            fi;
            g = 0;
            inside[c] = 1;
            inspect()
        }
    :: atomic { !guest[c] ->
#if FAULT == 5
        /* Says it only when CR3 is loaded already. */
        flush(c);
        psc[c] = tables;
        tlb[c] = pages
        };
        atomic { uses[c] = SPACE; inside[c] = 1; inspect() }
#else
        uses[c] = SPACE
        };
        atomic { flush(c); inside[c] = 1 }
#endif
    fi
}

inline free_retired(t) {
    if
#if FAULT == 3
    :: retired & BIT(t) ->
#else
    :: (retired & BIT(t)) && since[t] <= completed ->
#endif
        freed = freed | BIT(t);
        retired = retired & ~BIT(t)
    :: else
    fi
}

/* The round of CPU c has ended. */
inline finish(c) {
    if
    :: completed < due[c] -> completed = due[c]
    :: else
    fi;
    free_retired(0);
    free_retired(1);
    gone = gone | BIT(page[c]);
    due[c] = 0;
    page[c] = 0;
    waits[c] = 0;
    returned++;
    inspect()
}

/* CPU c is interrupted. A guest stops, and what was cached for it stays. */
inline attend(c) {
    atomic {
        interrupt[c] -> interrupt[c] = 0;
        a = asked[c];
        asked[c] = 0;
        if
        :: guest[c] -> inside[c] = 0
        :: else
#if FAULT != 1
            -> flush(c)
#endif
        fi
    }
    do
    :: atomic { a != 0 ->
        if
        :: a & 1 -> g = 0
        :: else -> g = 1
        fi;
        a = a & ~BIT(g);
        missing[g]--;
        if
#if FAULT != 11
        :: missing[g] == 0 -> interrupt[g] = 1
#endif
        :: else
        fi;
        g = 0
    }
    :: else -> break
    od;
    atomic {
#if FAULT == 1
        if
        :: !guest[c] -> flush(c)
        :: else
        fi;
#endif
        if
        :: waits[c] && missing[c] == 0 -> finish(c)
        :: else
        fi
    }
}

/* The targets of the round, each looked at and asked in one step: it answers later anyway. */
inline ask(c, i) {
    atomic {
#if FAULT == 7
        if
        :: i != c && (a & BIT(i)) ->
#else
        if
        :: i != c && uses[i] == SPACE ->
#endif
            missing[c]++;
            if
            :: asked[i] == 0 -> interrupt[i] = 1
            :: else         /* was, and has not looked yet */
            fi;
            asked[i] = asked[i] | BIT(c)
        :: else
        fi
    }
}

inline take_away(c) {
    atomic {
        if
        :: guest[c] -> inside[c] = 0
        :: else
        fi;
        if
        :: page[c] = 0
        :: c != 0 -> page[c] = 1        /* the other way round would be the same */
        fi;
#if FAULT == 7
        /* The targets of before the edit. */
        if :: uses[0] == SPACE -> a = a | 1 :: else fi;
        if :: uses[1] == SPACE -> a = a | 2 :: else fi;
        if :: uses[2] == SPACE -> a = a | 4 :: else fi
#endif
    }
    atomic { lock == 0 -> lock = 1 }
    if
    :: pages & BIT(page[c]) ->
        pages = pages & ~BIT(page[c]);
        tables = tables & ~BIT(page[c]);
#if FAULT == 9
        atomic { retired = retired | BIT(page[c]); since[page[c]] = generation; lock = 0 }
        atomic { generation++; g = 1 }
#else
        atomic { generation++; g = 1; retired = retired | BIT(page[c]); since[page[c]] = generation; lock = 0 }
#endif
    :: else -> lock = 0
    fi;
    due[c] = generation;
    if
    :: atomic { c == 0 -> g = 0; due[c] = 0; page[c] = 0; returned++ }  /* the EC is killed: nothing is promised */
#if FAULT == 4
    :: atomic { g == 0 -> finish(c) }   /* this call changed nothing */
    :: g != 0 ->
#else
    :: atomic { completed >= due[c] -> g = 0; finish(c) }
    :: completed < due[c] ->
#endif
        atomic {
            g = 0;
#if FAULT != 8
            if
            :: !guest[c] -> flush(c)
            :: else
            fi;
#endif
#if FAULT == 2
            freed = freed | retired;
            retired = 0;
            inspect();
#endif
            missing[c] = 1
        }
        ask(c, 0);
        ask(c, 1);
        ask(c, 2);
        atomic {
            a = 0;
            waits[c] = 1;
            missing[c]--;
            if
            :: missing[c] == 0 -> finish(c)
            :: else
            fi
        }
    fi
}

proctype Cpu(byte c) {
    byte a, g;
    bit called = (c >= CALLERS);
    /* Nothing here uses the space, or not any more. */
    bit idle = !(USERS & BIT(c));
    do
    :: attend(c)
    :: !called -> called = 1; take_away(c)
    :: !idle && !inside[c] -> enter(c)
    /* The walker. */
    :: atomic { inside[c] && (tables & ~psc[c] & 1) -> psc[c] = psc[c] | 1; inspect() }
    :: atomic { inside[c] && (tables & ~psc[c] & 2) -> psc[c] = psc[c] | 2; inspect() }
    :: atomic { inside[c] && (psc[c] & pages & ~tlb[c]) -> tlb[c] = tlb[c] | (psc[c] & pages); inspect() }
    /* An exit; another space is loaded, or another guest entered. */
    :: inside[c] && guest[c] -> inside[c] = 0
    :: atomic { uses[c] == SPACE && !inside[c] -> uses[c] = NONE }
    :: atomic { inside[c] && !guest[c] -> inside[c] = 0; uses[c] = NONE; flush(c) }
    :: !idle -> idle = 1
    :: atomic { idle && called && returned == CALLERS && !interrupt[c] -> break }
    od
}

init {
    atomic {
        guest[0] = GUESTS & 1;
        guest[1] = (GUESTS >> 1) & 1;
        guest[2] = (GUESTS >> 2) & 1;
        run Cpu(0);
        run Cpu(1);
        run Cpu(2)
    }
}
