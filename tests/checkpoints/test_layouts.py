"""The tables of key names, against the key lists of the implementations themselves."""
from pathlib import Path

import pytest
import torch
from golden import golden_state_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from mmseg_bisenetv2.checkpoints import CheckpointError, convert_state_dict
from mmseg_bisenetv2.checkpoints.layouts import BGA_BIASES

from mmseg.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
THEIRS = dict(ssseg='sssegmentation', coincheung='coincheung')


def own_shapes(name='bisenetv2_fcn_cityscapes.py'):
    config = Config.fromfile(CONFIGS / name)
    init_default_scope(config.default_scope)
    with torch.device('meta'):
        model = MODELS.build(config.model)
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.fixture(scope='module')
def theirs():
    return {name: golden_state_dict(name) for name in THEIRS}


@pytest.fixture(scope='module')
def shapes():
    return own_shapes()


def test_every_tensor_of_sssegmentation_has_its_place(theirs, shapes):
    ours = convert_state_dict(theirs['ssseg'])
    assert {key: value.shape for key, value in ours.items()} == shapes
    assert all(not ours[bias].any() for bias in BGA_BIASES)


def test_every_tensor_of_coincheung_has_its_place(theirs, shapes):
    ours = convert_state_dict(theirs['coincheung'])
    assert {key: value.shape for key, value in ours.items()} == {
        key: shape for key, shape in shapes.items() if not key.startswith('auxiliary_head.')}


def test_what_is_converted_fits_mmsegmentations_own_network(theirs):
    config = get_config('mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    ours = convert_state_dict(theirs['ssseg'])
    assert str(model.load_state_dict(ours, assign=True)) == '<All keys matched successfully>'


@pytest.mark.parametrize('name', THEIRS)
def test_round_trip_is_bit_equal(theirs, name):
    kept = {key: value for key, value in theirs[name].items()
            if name == 'ssseg' or not key.startswith('aux')}
    ours = convert_state_dict(theirs[name])
    back = convert_state_dict(ours, to=THEIRS[name])
    assert back.keys() == kept.keys()
    assert all(back[key] is kept[key] for key in kept)
    again = convert_state_dict(back)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], ours[key]) for key in ours)


def test_from_one_foreign_layout_to_the_other(theirs):
    there = convert_state_dict(theirs['coincheung'], to='sssegmentation')
    assert 'backbone_net.bga.conv.0.weight' in there
    assert convert_state_dict(there, to='coincheung').keys() == {
        key for key in theirs['coincheung'] if not key.startswith('aux')}


@pytest.mark.parametrize('to', THEIRS.values())
def test_the_large_network_has_a_place_too(to):
    ours = {key: torch.empty(shape) for key, shape in
            own_shapes('bisenetv2-large_fcn_cityscapes.py').items()
            if not key.startswith('auxiliary_head.')}
    ours = {key: value.zero_() if key in BGA_BIASES else value.fill_(1)
            for key, value in ours.items()}
    assert convert_state_dict(convert_state_dict(ours, to=to)).keys() == ours.keys()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_part_survives_the_way_there_and_back(shapes, data):
    to = data.draw(st.sampled_from([*THEIRS.values()]))
    keys = [key for key in shapes if key not in BGA_BIASES
            and (to == 'sssegmentation' or not key.startswith('auxiliary_head.'))]
    part = data.draw(st.sets(st.sampled_from(keys), min_size=1, max_size=20))
    part |= {'backbone.detail.detail_branch.0.0.conv.weight'}  # by which it is recognised
    state = {key: torch.ones(shapes[key], dtype=torch.int64 if 'tracked' in key else torch.float32)
             for key in part}
    back = convert_state_dict(convert_state_dict(state, to=to))
    assert back.keys() - set(BGA_BIASES) == part
    assert all(back[key] is state[key] for key in part)


@pytest.mark.parametrize('wrap', [
    lambda state: state,
    lambda state: {'model': state, 'optimizer': {'state': {}}, 'cur_epoch': 860, 'cur_iter': 1},
    lambda state: {'epoch': 860, 'model': state, 'optimizer': {'state': {}}},
    lambda state: {'meta': {}, 'state_dict': state},
    lambda state: {f'module.{key}': value for key, value in state.items()},
    lambda state: {'model': {f'module._orig_mod.{key}': value for key, value in state.items()}},
], ids=['bare', 'present', '2021', 'mmengine', 'ddp', 'compiled'])
def test_any_wrapping(theirs, shapes, wrap):
    assert convert_state_dict(wrap(theirs['ssseg'])).keys() == shapes.keys()


def test_a_state_dict_in_parts(theirs):
    """As CoinCheung's published backbone_v2.pth: one dictionary per branch."""
    parts = {}
    for key, value in theirs['coincheung'].items():
        name, rest = key.split('.', 1)
        if name in ('detail', 'segment', 'bga'):
            parts.setdefault(name, {})[rest] = value
    assert {key.split('.')[0] for key in convert_state_dict(parts)} == {'backbone'}


def test_our_own_keys_stay_as_they_are(theirs, log):
    ours = convert_state_dict(theirs['ssseg'])
    log.clear()
    again = convert_state_dict({'meta': {}, 'state_dict': ours, 'message_hub': {}})
    assert again == ours
    assert not log


def test_a_conversion_is_logged_in_one_line(theirs, log):
    convert_state_dict({**theirs['coincheung'], 'surprise.weight': torch.zeros(1)})
    assert log == [
        'CoinCheung/BiSeNet weights converted: 327 tensors used, 56 left out (its auxiliary heads '
        'are of another design), 1 unknown (surprise.weight ...), 2 biases that it lacks set to 0; '
        'its aggregation upsamples by nearest neighbour and its normalisation is another. To test '
        'the weights as they are, use the settings of '
        'configs/bisenetv2_fcn_coincheung_cityscapes.py; to fine-tune, any config will do']


def test_unknown_names_are_kept(theirs):
    state = {**theirs['ssseg'], 'decoder.9.weight': torch.zeros(1)}
    assert 'decoder.9.weight' in convert_state_dict(state)


@pytest.mark.parametrize('change, to, reason', [
    ({BGA_BIASES[0]: torch.full((128, ), 1e-8)}, 'sssegmentation', 'bga_bias=False'),
    ({BGA_BIASES[1]: torch.full((128, ), 1e-8)}, 'coincheung', 'bga_bias=False'),
    ({'neck.weight': torch.zeros(1)}, 'sssegmentation', 'no place for 1 tensors'),
    ({}, 'coincheung', 'auxiliary heads are of another design'),
    ({}, 'mmdetection', 'expected one of'),
])
def test_what_has_no_exact_way_back_says_why(theirs, change, to, reason):
    ours = {**convert_state_dict(theirs['ssseg']), **change}
    with pytest.raises(CheckpointError, match=reason):
        convert_state_dict(ours, to=to)


@pytest.mark.parametrize('checkpoint', [
    None, 3, [], 'backbone_net.detail.', {1: torch.zeros(1)}, {'state_dict': {2: None}},
    {'state_dict': None}, {'state_dict': [torch.zeros(1)], 'meta': {}}])
def test_what_is_no_state_dict(checkpoint):
    with pytest.raises(CheckpointError, match='expected'):
        convert_state_dict(checkpoint)


@pytest.mark.parametrize('value', [
    None, 'text', [1.0], torch.ones(64, 3, 3, 3).to_sparse(), torch.ones(1).expand(64, 3, 3, 3),
    torch.empty(64, 3, 3, 3, device='meta'), torch.ones(64, 3, 3, 3, dtype=torch.complex64),
    torch.ones(64, 3, 3, 3).to(torch.float8_e4m3fn), torch.ones(64, 3, 3, 3, dtype=torch.bool),
    torch.full((64, 3, 3, 3), float('nan')), torch.full((64, 3, 3, 3), float('-inf')),
    torch.full((64, 3, 3, 3), 1e38), torch.full((64, 3, 3, 3), -1e19)])
def test_what_is_no_weight_is_named(theirs, value):
    key = 'backbone_net.detail.detail_branch.0.0.weight'
    with pytest.raises(CheckpointError, match=key):
        convert_state_dict({**theirs['ssseg'], key: value})


def test_a_negative_variance_is_named(theirs):
    key = 'backbone_net.detail.detail_branch.0.1.running_var'
    for value in (0.0, 1e17):
        convert_state_dict({**theirs['ssseg'], key: torch.full((64, ), value)})
    with pytest.raises(CheckpointError, match=f'{key} holds -1e-06, a negative variance'):
        convert_state_dict({**theirs['ssseg'], key: torch.full((64, ), -1e-6)})


@pytest.mark.parametrize('count, expected', [
    (3.0, 3), (0.0, 0), (float('inf'), 65504), (2.5, None), (-1.0, None), (float('nan'), None)])
def test_a_floating_point_counter(theirs, count, expected):
    """All-half checkpoints have them; 65,504 is the largest half."""
    key = 'backbone_net.detail.detail_branch.0.1.num_batches_tracked'
    state = {**theirs['ssseg'], key: torch.tensor(count).half()}
    own = key.replace('backbone_net', 'backbone').replace('0.1.num', '0.0.bn.num')
    if expected is None:
        try:
            assert convert_state_dict(state)[own].is_floating_point()
        except CheckpointError as error:
            assert key in str(error)
    else:
        assert convert_state_dict(state)[own].dtype == torch.int64
        assert convert_state_dict(state)[own] == expected


def test_two_tensors_for_one_place(theirs):
    state = {**theirs['ssseg'], 'decode_head.conv_seg.bias': torch.zeros(19)}
    with pytest.raises(CheckpointError, match=r'two tensors are decode_head.conv_seg.bias'):
        convert_state_dict(state)
