//! Which of several places is the closest.

use super::estimate::tolerance;

/// How far away an instance is, the nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// On this node.
    Here,
    /// Microseconds there and back, as its node's [`Event::Distance`](super::Event::Distance) said last.
    Measured(u32),
    /// Its node has not answered any probe yet, or never does.
    Unknown,
}

/// Whether something at `distance` is as good as something at `nearest`, which is the nearest there is. On a node and
/// off it is never the same; otherwise a fifth, or a millisecond, makes no difference.
pub fn is_near(nearest: Distance, distance: Distance) -> bool {
    match (nearest, distance) {
        (Distance::Here, Distance::Here) | (Distance::Unknown, _) => true,
        (Distance::Measured(least), Distance::Measured(other)) => {
            other <= least.saturating_add(tolerance(least))
        }
        (Distance::Here | Distance::Measured(_), _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions of the closest.
    fn closest(distances: &[Distance]) -> Vec<usize> {
        let nearest = *distances.iter().min().expect("some");
        (0..distances.len())
            .filter(|position| is_near(nearest, distances[*position]))
            .collect()
    }

    #[test]
    fn p16_the_closest_are_those_here_then_the_nearest_then_the_unknown() {
        use Distance::{Here, Measured, Unknown};
        let cases: [(&str, &[Distance], &[usize]); 8] = [
            ("here", &[Measured(1), Here, Unknown], &[1]),
            ("two here", &[Here, Measured(900), Here], &[0, 2]),
            ("one that is measured", &[Unknown, Measured(250_000)], &[1]),
            ("none that is measured", &[Unknown, Unknown], &[0, 1]),
            (
                "a millisecond is a tie",
                &[Measured(200), Measured(1_200), Measured(1_201)],
                &[0, 1],
            ),
            (
                "a fifth is a tie",
                &[Measured(10_000), Measured(12_000), Measured(12_001)],
                &[0, 1],
            ),
            (
                "the order does not matter",
                &[Measured(30_000), Measured(10_000)],
                &[1],
            ),
            ("alone", &[Unknown], &[0]),
        ];
        for (name, distances, expected) in cases {
            assert_eq!(closest(distances), expected, "{name}");
        }
    }
}
