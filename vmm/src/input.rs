//! Console input on its way from its ring to the serial port, or to the virtio console while a driver attends to that: a
//! thread leaves it here, the first vCPU or the device takes it.

use runtime::channel::Receiver;
use runtime::sync::sleep_until;
use runtime::time;

use crate::pipe::Pipe;

/// Bytes of console input on their way.
pub const CAPACITY: usize = 256;
/// How long to wait when the guest takes nothing, in milliseconds.
const RETRY_MS: u64 = 10;

/// What is on its way to the serial port.
pub type Input = Pipe<CAPACITY>;

/// What the main thread does: `give` takes as much as it can and returns how much that is. Ends with the ring: a broken
/// or closed one ends the input, not the machine.
pub fn pass(mut ring: Receiver, give: impl Fn(&[u8]) -> usize) {
    let mut buffer = [0; CAPACITY];
    while ring.wait(0) == Ok(true) {
        let Ok(count) = ring.peek(&mut buffer) else { return };
        let count = give(&buffer[..count]);
        ring.consume(count);
        if count == 0 {
            sleep_until(time::now() + time::ticks_from_ms(RETRY_MS));
        }
    }
}
