//! Cuts a range of selectors into order-aligned pieces, as ctrl_pd needs them (NOVA 5.4.1).

/// An aligned piece: as many selectors from `source` to `destination` as 2^`order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First selector in the source space.
    pub source: u64,
    /// First selector in the destination space.
    pub destination: u64,
    /// log2 of the number of selectors.
    pub order: u32,
}

/// The pieces of `count` selectors from `source` to `destination`, each as large as alignment and `max_order` allow.
pub fn spans(source: u64, destination: u64, count: u64, max_order: u32) -> impl Iterator<Item = Span> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = count - done;
        if left == 0 {
            return None;
        }
        let (source, destination) = (source + done, destination + done);
        let aligned = (source | destination).trailing_zeros();
        let order = aligned.min(left.ilog2()).min(max_order);
        done += 1 << order;
        Some(Span { source, destination, order })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn large_pieces_where_both_sides_are_aligned() {
        let orders = |s, d, n, m| spans(s, d, n, m).map(|span| span.order).collect::<Vec<_>>();
        assert_eq!(orders(0, 0x200, 0x400, 31), [9, 9]);
        assert_eq!(orders(0x200, 0, 0x400, 31), [9, 9]);
        assert_eq!(orders(0, 0, 0x401, 31), [10, 0]);
        assert_eq!(orders(1, 1, 7, 31), [0, 1, 2]);
        assert_eq!(orders(1, 2, 3, 31), [0, 0, 0]);
        assert_eq!(orders(0, 0, 8, 1), [1, 1, 1, 1]);
        assert_eq!(orders(5, 5, 0, 9), []);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_once(s in 0u64..1 << 20, d in 0u64..1 << 20, n in 0u64..5000, m in 0u32..32) {
            let mut next = 0;
            for span in spans(s, d, n, m) {
                prop_assert_eq!((span.source, span.destination), (s + next, d + next));
                prop_assert!(span.order <= m);
                prop_assert_eq!((span.source | span.destination) & ((1 << span.order) - 1), 0);
                next += 1 << span.order;
            }
            prop_assert_eq!(next, n);
        }
    }
}
