//! A CPU's timeouts: an intrusive leftist heap, ordered by deadline.
//!
//! In a leftist heap the right spine of every subtree is its shortest path down, hence at most log2(n) long. Insertion
//! and removal of any node, not only the first, are merges along right spines: O(log n), without recursion.
//! Objects are named by ids, `u32` values below [`NIL`], and found through [`TimeoutNodes`].

use core::cell::Cell;

/// No object.
pub const NIL: u32 = u32::MAX;

/// An object's place in the heap.
pub struct TimeoutNode {
    deadline: Cell<u64>,
    left: Cell<u32>,
    right: Cell<u32>,
    parent: Cell<u32>,
    /// Nodes on the right spine from here; 0 if the node is in no heap.
    rank: Cell<u32>,
}

impl TimeoutNode {
    /// A node that is in no heap.
    pub const fn unlinked() -> Self {
        Self {
            deadline: Cell::new(0),
            left: Cell::new(NIL),
            right: Cell::new(NIL),
            parent: Cell::new(NIL),
            rank: Cell::new(0),
        }
    }

    /// The deadline that the node waits for; `None` if it is in no heap.
    pub fn deadline(&self) -> Option<u64> {
        (self.rank.get() != 0).then_some(self.deadline.get())
    }
}

/// Finds the node of an object; the same node for the same id as long as it is in the heap.
pub trait TimeoutNodes {
    /// The node of object `id`.
    fn node(&self, id: u32) -> &TimeoutNode;
}

/// The heap. Deadlines are values of the system time counter.
pub struct TimeoutQueue {
    root: u32,
}

impl TimeoutQueue {
    /// An empty heap.
    pub const fn empty() -> Self {
        Self { root: NIL }
    }

    /// The earliest deadline and who waits for it.
    pub fn first(&self, nodes: &impl TimeoutNodes) -> Option<(u64, u32)> {
        (self.root != NIL).then(|| (nodes.node(self.root).deadline.get(), self.root))
    }

    /// Adds an object; false, and nothing done, if its node is in a heap already.
    pub fn insert(&mut self, nodes: &impl TimeoutNodes, id: u32, deadline: u64) -> bool {
        let node = nodes.node(id);
        if node.rank.get() != 0 {
            return false;
        }
        node.deadline.set(deadline);
        node.rank.set(1);
        self.root = merge(nodes, self.root, id);
        true
    }

    /// Takes an object out; false if its node is in no heap. It must not be in another heap.
    pub fn remove(&mut self, nodes: &impl TimeoutNodes, id: u32) -> bool {
        let node = nodes.node(id);
        if node.rank.replace(0) == 0 {
            return false;
        }
        let (left, right, parent) = (node.left.replace(NIL), node.right.replace(NIL), node.parent.replace(NIL));
        let below = merge(nodes, left, right);
        if below != NIL {
            nodes.node(below).parent.set(parent);
        }
        if parent == NIL {
            self.root = below;
            return true;
        }
        let above = nodes.node(parent);
        let link = if above.left.get() == id { &above.left } else { &above.right };
        link.set(below);
        // Each step up but the last raises or lowers a rank that is one more than the step before: at most log2(n).
        let mut ancestor = parent;
        while ancestor != NIL && balance(nodes, ancestor) {
            ancestor = nodes.node(ancestor).parent.get();
        }
        true
    }

    /// Takes out an object whose deadline is not after `now`, the earliest first.
    pub fn pop_expired(&mut self, nodes: &impl TimeoutNodes, now: u64) -> Option<u32> {
        let (_, id) = self.first(nodes).filter(|&(deadline, _)| deadline <= now)?;
        self.remove(nodes, id).then_some(id)
    }
}

fn rank(nodes: &impl TimeoutNodes, id: u32) -> u32 {
    if id == NIL { 0 } else { nodes.node(id).rank.get() }
}

/// Puts the child with the shorter right spine right; whether that changed the node's own rank.
fn balance(nodes: &impl TimeoutNodes, id: u32) -> bool {
    let node = nodes.node(id);
    let (left, right) = (rank(nodes, node.left.get()), rank(nodes, node.right.get()));
    if left < right {
        node.left.swap(&node.right);
    }
    let new = left.min(right) + 1;
    node.rank.replace(new) != new
}

/// Joins two heaps and returns the root of the result. Both roots' parents must be `NIL`.
fn merge(nodes: &impl TimeoutNodes, mut a: u32, mut b: u32) -> u32 {
    // Down the right spines, always going on from the earlier of the two: `a` is next to be linked below `parent`.
    let (mut root, mut parent) = (NIL, NIL);
    while a != NIL || b != NIL {
        if a == NIL || (b != NIL && nodes.node(b).deadline.get() < nodes.node(a).deadline.get()) {
            core::mem::swap(&mut a, &mut b);
        }
        match parent {
            NIL => root = a,
            _ => nodes.node(parent).right.set(a),
        }
        let node = nodes.node(a);
        node.parent.set(parent);
        if b == NIL {
            break;
        }
        (parent, a) = (a, node.right.get());
    }
    // Up again along the same path.
    while parent != NIL {
        balance(nodes, parent);
        parent = nodes.node(parent).parent.get();
    }
    root
}

#[cfg(test)]
mod tests;
