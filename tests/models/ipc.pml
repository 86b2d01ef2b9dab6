/*
 * Calls, helping and destruction: whatever order a program's calls, replies, deaths, waits and an object's destruction
 * come in, no EC that was freed is ever looked at, no scheduling context is lost, no chain of calls is a circle.
 *
 * CPU 0 has four ECs: two global threads, A and B, and two local threads, L and M. Whoever runs may call L or M, raise
 * an event whose handler is L or M, block, or die; a local thread may also reply. Priorities play no part: any scheduling
 * context that is ready may be the next. CPU 2 ups the semaphores on which ECs block and creates the scheduling context
 * of B. On CPU 1 somebody destroys the ECs of TARGETS (A 1, B 2, L 4, M 8) with their scheduling contexts.
 *
 * The kernel runs with interrupts off, so what a CPU does between two looks at its mail is one step, but for what other
 * CPUs can see or change of it. Mail may be taken out in any order, which is more than mailbox.rs allows.
 *
 * What stands for what, in microhypervisor/src:
 *   cont, caller, callee, helps     the fields of ec::Ec
 *   valid                           the generation of the header (object.rs): cleared, every Ref and capability is null
 *   place, at                       where a scheduling context is: sched.rs. Number 0 and 1 are those of A and B; 2 and
 *                                   3 the ones that L and M inherit (ec::Ec::orphan)
 *   competes                        the priority of the scheduling context is not 0
 *   ahead, follow, resume           sched.rs; schedule is the choice in cpu0
 *   call, circle, reply, unwind     portal.rs: call and raise, waits_for, reply, unwind
 *   stop, inherit, disinherit       destroy.rs, sched.rs
 *   asked, cpu0's first choice      rounds.rs: attend; Round and Requests of shootdown.rs
 *   destroyer                       destroy.rs: mark, two rounds, more while mail is pending, sweep
 *
 * `cargo xtask models` checks all interleavings of these sizes, and that each fault is found:
 * run TARGETS=1
 * run TARGETS=2
 * run TARGETS=4
 * run TARGETS=5 SECOND=0 EVENTS=1
 * run TARGETS=8 SECOND=0 EVENTS=1
 * long TARGETS=1 EVENTS=1
 * long TARGETS=4 EVENTS=1
 * long TARGETS=5
 * long TARGETS=6 EVENTS=1
 * long TARGETS=8
 * fault 1 TARGETS=1: a call that closes a circle helps
 * fault 2 TARGETS=1: the callee of a stopped caller keeps it as its caller
 * fault 3 TARGETS=4: the caller of a stopped callee waits for ever
 * fault 4 TARGETS=4: one round
 * fault 5 TARGETS=4: whom an EC helps is not looked up anew
 * fault 6 TARGETS=2: a scheduling context begins after it was stopped
 * fault 7 TARGETS=1: a reply to a caller that was only helped goes on with that caller
 * fault 8 TARGETS=1: the callee of a stopped caller inherits no scheduling context
 * fault 9 TARGETS=4: who waits for a dead EC's wake-up stays parked at it
 * fault 10 TARGETS=5: what a stopped EC inherited is not passed on to its callee
 * fault 11 TARGETS=1: who asks after the mail was looked at is answered
 * fault 12 TARGETS=1: an EC is freed with mail pending
 */

#ifndef FAULT
#define FAULT 0
#endif
#ifndef TARGETS
#define TARGETS 4
#endif

/* Whether events occur; M handles them. */
#ifndef EVENTS
#define EVENTS 0
#endif
/* Whether there is B. */
#ifndef SECOND
#define SECOND 1
#endif

#define ECS  4
#define L    2
#define NONE 7

/* Continuations. RUN: in user mode, or about to be. */
#define IDLE    0
#define RUN     1
#define SEND    2
#define AWAIT   3
#define BLOCKED 4
#define DEAD    5

/* Places of scheduling contexts. */
#define OUT     0
#define READY   1
#define CURRENT 2
#define PARKED  3

/* Mail. */
#define WAKE  1
#define STOP  2
#define START 1

byte cont[ECS];
byte caller[ECS];
byte callee[ECS];
byte helps[ECS];
bit event[ECS];         /* what it sends is an event: if its handler dies, so does it */
bit queued[ECS];        /* in the queue of a semaphore */
byte mail[ECS];
bit valid[ECS];
bit freed[ECS];

byte place[ECS];
byte at[ECS];
bit competes[ECS];
bit heir[ECS];          /* ec::Ec::share of a local thread is that of who stopped */
byte sc_mail[ECS];

byte current = NONE;    /* scheduling context of CPU 0 */
byte running = NONE;    /* EC of CPU 0 */
bit helping;
byte asked[3];          /* CPUs that have not answered the round */
#define NOTED 2         /* it has seen that it is asked, and will answer */

#define TARGET(e)  ((TARGETS >> (e)) & 1)
#define BUSY(e)    (cont[e] != IDLE && cont[e] != DEAD)

inline ahead(e, next) {
    if
    :: cont[e] == SEND ->
        next = helps[e];
        if
#if FAULT == 5
        :: next != NONE -> assert(!freed[next]); next = (BUSY(next) -> next : NONE)
#else
        :: next != NONE && (!valid[next] || !BUSY(next)) -> next = NONE
#endif
        :: else
        fi
    :: else -> next = callee[e]
    fi
}

/* The end of the chain of the current scheduling context, or NONE: then it is parked, or dropped. */
inline follow() {
    helping = 0;
    running = NONE;
    n = 0;
    x = current;
    if
    :: !valid[x] -> x = NONE
    :: else
    fi;
    do
    :: x == NONE ->
        /* It has nothing to run any more: its thread is gone, or what it was inherited for is done. */
        assert(current >= L || !valid[current] || cont[current] == DEAD);
        place[current] = OUT;
        current = NONE;
        break
    :: else ->
        assert(!freed[x]);
        n++;
        assert(n <= ECS);
        ahead(x, y);
        if
        :: y != NONE ->
            if
            :: cont[x] == SEND -> helping = 1
            :: else
            fi;
            x = y
        :: else ->
            if
            :: cont[x] == BLOCKED ->
                place[current] = PARKED;
                at[current] = x;
                current = NONE;
                break
            :: cont[x] == DEAD || cont[x] == IDLE || cont[x] == AWAIT -> x = NONE
            :: cont[x] == RUN || cont[x] == SEND -> running = x; break
            fi
        fi
    od;
    x = 0; y = 0; n = 0
}

inline resume() {
    if
    :: current != NONE -> follow()
    :: else -> running = NONE
    fi
}

inline unpark(e) {
    n = 0;
    do
    :: n < ECS ->
        if
        :: place[n] == PARKED && at[n] == e -> place[n] = READY; at[n] = NONE
        :: else
        fi;
        n++
    :: else -> n = 0; break
    od
}

inline unwind(e) {
    x = e;
    do
    :: cont[x] = DEAD;
        callee[x] = NONE;
        helps[x] = NONE;
#if FAULT != 9
        unpark(x);
#endif
        y = caller[x];
        caller[x] = NONE;
        if
        :: y == NONE -> break
        :: else ->
#if FAULT == 3
            break
#else
            assert(!freed[y] && callee[y] == x);
            callee[y] = NONE;
            if
            :: event[y] -> event[y] = 0; x = y
            :: else -> cont[y] = RUN; break
            fi
#endif
        fi
    od;
    x = 0; y = 0
}

inline remove(s) {
    if
    :: place[s] == CURRENT -> current = NONE; running = NONE
    :: else
    fi;
    place[s] = OUT;
    at[s] = NONE;
    competes[s] = 0
}

inline disinherit(e) {
    if
    :: e >= L && competes[e] -> remove(e); heir[e] = 0
    :: else
    fi
}

/* Whoever began the chain of calls that e serves had, or inherited, a scheduling context. */
inline inherit(e, first) {
    x = first;
    do
    :: caller[x] != NONE -> x = caller[x]
    :: else -> break
    od;
    if
    :: (x < L || heir[x]) && !competes[e] -> competes[e] = 1; place[e] = READY;
#if FAULT != 10
        heir[e] = 1
#endif
    :: else
    fi;
    x = 0
}

/* A message that an EC stops. */
inline stop(e) {
    queued[e] = 0;
    if
    :: callee[e] != NONE ->
        z = callee[e];
        callee[e] = NONE;
#if FAULT != 2
        caller[z] = NONE;
#endif
#if FAULT != 8
        inherit(z, e);
#endif
        z = 0
    :: else
    fi;
    unwind(e);
    disinherit(e)
}

/* Whether callee c waits for e. */
inline circle(c, e) {
    x = c;
    n = 0;
    do
    :: x == NONE || x == e || n > ECS -> break
    :: else -> ahead(x, y); x = y; n++
    od;
    y = 0; n = 0
}

/* e, which runs, calls c or raises an event that c handles. */
inline call(e, c) {
    callee[e] = NONE;
    helps[e] = NONE;
    if
    :: !valid[c] || cont[c] == DEAD -> aborts = 1
    :: valid[c] && cont[c] == IDLE ->
        assert(caller[c] == NONE && callee[c] == NONE);
        cont[e] = AWAIT;
        caller[c] = e;
        callee[e] = c;
        cont[c] = RUN;
        running = c
    :: valid[c] && BUSY(c) ->
#if FAULT != 1
        circle(c, e);
#endif
        if
        :: x == e && FAULT != 1 -> aborts = 1
        :: else -> cont[e] = SEND; helps[e] = c; resume()
        fi;
        x = 0
    fi;
    if
    :: aborts && event[e] -> event[e] = 0; dies = 1
    :: aborts && !event[e] -> cont[e] = RUN
    :: else
    fi;
    aborts = 0
}

inline reply(e) {
    cont[e] = IDLE;
    z = caller[e];
    caller[e] = NONE;
    if
    :: z == NONE -> disinherit(e); resume()
    :: else ->
        assert(!freed[z] && callee[z] == e && cont[z] == AWAIT);
        callee[z] = NONE;
        event[z] = 0;
        cont[z] = RUN;
#if FAULT == 7
        running = z
#else
        if
        :: helping -> resume()
        :: else -> running = z
        fi
#endif
    fi;
    z = 0
}

/* Nothing is lost, nothing is left over. Between two steps of CPU 0. */
inline inspect() {
    n = 0;
    do
    :: n < ECS ->
        assert(caller[n] == NONE || (!freed[caller[n]] && callee[caller[n]] == n));
        assert(callee[n] == NONE || (!freed[callee[n]] && caller[callee[n]] == n));
        assert(cont[n] != AWAIT || callee[n] != NONE);
        assert(place[n] == OUT || (competes[n] && !freed[n]));
        assert(place[n] != PARKED || (!freed[at[n]] && cont[at[n]] == BLOCKED));
        /* Who serves a caller that is gone still has what to run on. */
        assert(n < L || !BUSY(n) || caller[n] != NONE || competes[n]);
        n++
    :: else -> n = 0; break
    od;
    assert(running == NONE || (current != NONE && !freed[running]))
}

inline deliver() {
    if
    :: mail[0] -> z = 0
    :: mail[1] -> z = 1
    :: mail[2] -> z = 2
    :: mail[3] -> z = 3
    fi;
    n = mail[z];
    mail[z] = 0;
    assert(!freed[z]);
    if
    :: n & STOP -> w = z; stop(w)
    :: !(n & STOP) && cont[z] == BLOCKED -> cont[z] = RUN; unpark(z)
    :: else
    fi;
    w = 0; z = 0; n = 0
}

inline deliver_sc() {
    if
    :: sc_mail[0] -> z = 0
    :: sc_mail[1] -> z = 1
    fi;
    assert(!freed[z]);
    if
    :: sc_mail[z] & STOP -> remove(z)
#if FAULT == 6
    :: !(sc_mail[z] & STOP) -> competes[z] = 1; place[z] = READY
#else
    :: !(sc_mail[z] & STOP) && competes[z] -> place[z] = READY
#endif
    :: else
    fi;
    sc_mail[z] = 0;
    z = 0
}

#define MAIL    (mail[0] || mail[1] || mail[2] || mail[3])
#define SC_MAIL (sc_mail[0] || sc_mail[1])

proctype cpu0() {
    byte x, y, z, w, n, c;
    bit aborts, dies;
end:
    do
    /* Attends: sees who asks, handles mail until there is none, answers; mail may come in between. Then what runs is
       chosen anew. */
    :: atomic { asked[0] || MAIL || SC_MAIL -> running = NONE;
#if FAULT != 11
        asked[0] = (asked[0] -> NOTED : 0)
#endif
        };
        do
        :: atomic { MAIL -> deliver() }
        :: atomic { SC_MAIL -> deliver_sc() }
        :: atomic { !MAIL && !SC_MAIL -> break }
        od;
        atomic {
#if FAULT == 11
            asked[0] = 0;
#else
            asked[0] = (asked[0] == NOTED -> 0 : asked[0]);
#endif
            resume();
            inspect()
        }
    /* Schedules: the budget ends, or something more urgent is ready, or nothing ran. */
    :: atomic { current != NONE -> place[current] = READY; current = NONE; running = NONE }
    :: atomic { current == NONE && (place[0] == READY || place[1] == READY || place[2] == READY || place[3] == READY) ->
        if
        :: place[0] == READY -> current = 0
        :: place[1] == READY -> current = 1
        :: place[2] == READY -> current = 2
        :: place[3] == READY -> current = 3
        fi;
        place[current] = CURRENT;
        follow();
        inspect()
    }
    /* The EC that runs tries again, or does what it likes. */
    :: atomic { running != NONE ->
        w = running;
        /* What runs is what the chain leads to; whoever is marked meanwhile runs until the next look at the mail. */
        c = current;
        do
        :: n < ECS && c != w -> ahead(c, y); c = (y == NONE -> c : y); n++
        :: else -> break
        od;
        assert(c == w || !(valid[0] && valid[1] && valid[2] && valid[3]));
        y = 0; n = 0; c = NONE;
        if
        :: cont[w] == SEND -> c = helps[w]
        :: cont[w] == RUN -> c = 2
        :: cont[w] == RUN -> c = 3
        :: cont[w] == RUN && EVENTS -> c = 3; event[w] = 1
        :: cont[w] == RUN && w >= L -> reply(w)
        :: cont[w] == RUN -> cont[w] = BLOCKED; queued[w] = 1; resume()
        :: cont[w] == RUN -> dies = 1
        fi;
        if
        :: c != NONE -> call(w, c)
        :: else
        fi;
        if
        :: dies -> dies = 0; unwind(w); resume()
        :: else
        fi;
        w = 0; c = 0;
        inspect()
    }
    /* A timeout. */
    :: atomic { queued[0] || queued[2] ->
        w = (queued[0] -> 0 : 2);
        queued[w] = 0;
        cont[w] = RUN;
        unpark(w);
        w = 0;
        inspect()
    }
    od
}

proctype cpu2() {
    byte e;
    /* In create_sc for B: it exists, and will begin. */
    if
    :: SECOND -> sc_mail[1] = sc_mail[1] | START
    :: else
    fi;
end:
    do
    :: atomic { asked[2] -> asked[2] = 0 }
    /* In Sm::up: takes the EC out of the queue, then tells its CPU. */
    :: atomic {
        if
        :: queued[0] -> e = 0
        :: queued[1] -> e = 1
        :: queued[2] -> e = 2
        :: queued[3] -> e = 3
        fi;
        queued[e] = 0
        };
        atomic { assert(!freed[e]); mail[e] = mail[e] | WAKE; e = 0 }
    od
}

#define pending() ((TARGET(0) && mail[0]) || (TARGET(1) && mail[1]) || (TARGET(2) && mail[2]) || (TARGET(3) && mail[3]))

inline round() {
    atomic { asked[0] = 1; asked[2] = 1 };
    atomic { !asked[0] && !asked[2] }
}

proctype destroyer() {
    byte e;
    /* Mark. */
    do
    :: e < ECS ->
        if
        :: TARGET(e) ->
            valid[e] = 0;
            mail[e] = mail[e] | STOP;
            if
            :: e < L -> sc_mail[e] = sc_mail[e] | STOP
            :: else
            fi
        :: else
        fi;
        e++
    :: else -> e = 0; break
    od;
    round();
#if FAULT != 4
    round();
#if FAULT != 12
    do
    :: atomic { !pending() -> break }
    :: atomic { pending() -> skip };
        round()
    od;
#endif
#endif
    /* Sweep. */
    do
    :: atomic { e < ECS ->
        if
        :: TARGET(e) ->
            freed[e] = 1;
            assert(cont[e] == DEAD && !mail[e] && !sc_mail[e] && !queued[e] && place[e] == OUT);
            assert(running != e && current != e);
            assert(at[0] != e && at[1] != e && at[2] != e && at[3] != e);
            assert(caller[0] != e && caller[1] != e && caller[2] != e && caller[3] != e);
            assert(callee[0] != e && callee[1] != e && callee[2] != e && callee[3] != e)
        :: else
        fi;
        e++
    }
    :: atomic { e == ECS -> e = 0; break }
    od
}

init {
    byte e;
    atomic {
        do
        :: e < ECS ->
            caller[e] = NONE; callee[e] = NONE; helps[e] = NONE; at[e] = NONE; valid[e] = 1;
            if
            :: e == 0 || (e == 1 && SECOND) -> cont[e] = RUN; competes[e] = 1
            :: e == 1 && !SECOND -> cont[e] = DEAD
            :: else
            fi;
            e++
        :: else -> break
        od;
        place[0] = READY;
        run cpu0();
        run cpu2();
        run destroyer()
    }
}
