// What invocations tell each other without workgroup memory: those of a subgroup, anything. The same functions as in
// alone.wgsl. A workgroup is whole subgroups, or a part of one.

// How many of them share what they load, at most as many as the smallest subgroup that this file is used with has.
const SHARE = 8u;

struct Lane {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) number: u32,
}

fn index_of(lane: Lane) -> u32 {
    return lane.subgroup * lane.size + lane.number;
}

fn number_of(lane: Lane) -> u32 {
    return lane.number;
}

fn heard_by(lane: Lane) -> u32 {
    return lane.size;
}

fn from_lane(value: vec4<f32>, number: u32) -> vec4<f32> {
    return subgroupShuffle(value, number);
}

fn all_say(own: bool) -> bool {
    return subgroupAll(own);
}
