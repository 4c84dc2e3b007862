//! Geometry of a rotating disk: zones of tracks, and when a place passes under the head.
//!
//! Everything follows from one function, the *media time* of a byte: how long after the first byte it passes when the
//! disk is read from its start without a pause, track changes included. Tracks are skewed so that this is one movement;
//! so the angle of a place is its media time modulo a revolution, and a transfer takes the difference of media times.

use super::params::DiskParams;

const ZONES: u64 = 16;

struct Zone {
    start_byte: u64,
    start_track: u64,
    start_ns: u64,
    track_bytes: u64,
}

pub(super) struct Surface {
    zones: Vec<Zone>,
    tracks: u64,
    revolution_ns: u64,
    /// A revolution and the change to the next track.
    track_ns: u64,
    /// Track-to-track, and the share of the square root in the seek curve, for reading and writing.
    curves: [(u64, f64); 2],
    short_ns: f64,
    full_ns: f64,
    /// The curves by distance in tracks, where that is short: the controller asks for hundreds of places at each step.
    near: [Vec<u64>; 2],
}

/// Longest distance that is looked up.
const NEAR_TRACKS: u64 = 4096;

/// Means of the square root and of the distance itself over all pairs of places on a line of length 1.
const MEAN_SQRT: f64 = 8.0 / 15.0;
const MEAN_LINEAR: f64 = 1.0 / 3.0;

impl Surface {
    pub fn new(params: &DiskParams, size_bytes: u64) -> Surface {
        let track_ns = params.revolution_ns + params.seek_track_ns.0;
        let zone_bytes = size_bytes.div_ceil(ZONES);
        let (mut zones, mut start_track, mut start_ns) = (Vec::new(), 0, 0);
        for zone in 0..ZONES {
            let drop = (params.outer_bytes_per_s - params.inner_bytes_per_s) * zone / (ZONES - 1);
            let rate = params.outer_bytes_per_s - drop;
            let track_bytes = (u128::from(rate) * u128::from(track_ns) / 1_000_000_000) as u64;
            zones.push(Zone { start_byte: zone * zone_bytes, start_track, start_ns, track_bytes });
            let tracks = zone_bytes.div_ceil(track_bytes);
            start_track += tracks;
            start_ns += tracks * track_ns;
        }
        // Fitted so that the mean over all pairs of places is the published one.
        let fit = |track_ns: u64, mean_ns: u64| {
            let (short, full, mean) = (params.seek_short_ns as f64, params.seek_full_ns as f64, mean_ns as f64);
            (track_ns, ((mean - short) / (full - short) - MEAN_LINEAR) / (MEAN_SQRT - MEAN_LINEAR))
        };
        let mut surface = Surface {
            zones,
            tracks: start_track,
            revolution_ns: params.revolution_ns,
            track_ns,
            curves: [
                fit(params.seek_track_ns.0, params.seek_mean_ns.0),
                fit(params.seek_track_ns.1, params.seek_mean_ns.1),
            ],
            short_ns: params.seek_short_ns as f64,
            full_ns: params.seek_full_ns as f64,
            near: [Vec::new(), Vec::new()],
        };
        for write in [false, true] {
            let times = (0..=NEAR_TRACKS).map(|tracks| surface.curve_ns(tracks, write)).collect();
            surface.near[usize::from(write)] = times;
        }
        surface
    }

    fn zone(&self, byte: u64) -> &Zone {
        let at = (byte / self.zones[1].start_byte.max(1)) as usize;
        &self.zones[at.min(self.zones.len() - 1)]
    }

    /// Track and media time of a byte.
    pub fn place(&self, byte: u64) -> (u64, u64) {
        let zone = self.zone(byte);
        let within = byte - zone.start_byte;
        let (track, rest) = (within / zone.track_bytes, within % zone.track_bytes);
        let ns = zone.start_ns + track * self.track_ns + rest * self.revolution_ns / zone.track_bytes;
        (zone.start_track + track, ns)
    }

    /// Time to move the arm by this many tracks.
    pub fn seek_ns(&self, tracks: u64, write: bool) -> u64 {
        let near = self.near[usize::from(write)].get(tracks as usize);
        near.copied().unwrap_or_else(|| self.curve_ns(tracks, write))
    }

    fn curve_ns(&self, tracks: u64, write: bool) -> u64 {
        if tracks == 0 {
            return 0;
        }
        let (track_ns, root) = self.curves[usize::from(write)];
        if tracks == 1 {
            return track_ns;
        }
        let share = tracks as f64 / self.tracks as f64;
        (self.short_ns + (self.full_ns - self.short_ns) * (root * share.sqrt() + (1.0 - root) * share)) as u64
    }

    /// How long until a place with this media time passes under the head, from `now_ns` on.
    pub fn wait_ns(&self, media_ns: u64, now_ns: u64) -> u64 {
        let (angle, now) = (media_ns % self.revolution_ns, now_ns % self.revolution_ns);
        (angle + self.revolution_ns - now) % self.revolution_ns
    }
}
