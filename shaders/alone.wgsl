// What invocations tell each other without workgroup memory: nothing. In the place of subgroup.wgsl.

// How many of them share what they load.
const SHARE = 1u;

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

// Its place in the workgroup.
fn index_of(lane: Lane) -> u32 {
    return lane.index;
}

// Its place among those that it hears.
fn number_of(lane: Lane) -> u32 {
    return 0u;
}

// How many it hears.
fn heard_by(lane: Lane) -> u32 {
    return 1u;
}

// What one of them has.
fn from_lane(value: vec4<f32>, number: u32) -> vec4<f32> {
    return value;
}

// Whether all of them say so.
fn all_say(own: bool) -> bool {
    return own;
}
