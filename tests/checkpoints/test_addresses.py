"""Downloads, from a server on this machine that does everything wrong."""
import hashlib
import http.server
import os
import socket
import threading
import time
from pathlib import Path

import mmengine.runner.checkpoint
import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmseg_bisenetv2.checkpoints import CheckpointError, downloads, write_checkpoint

WEIGHT = {'backbone_net.bga.conv.0.weight': torch.ones(8, 8, 3, 3)}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.content`` at any path, in the manner that the path begins with."""

    def do_GET(self):
        content, manner = self.server.content, self.path.split('/')[1]
        self.server.requests.append(self.path)
        if manner == 'missing':
            return self.send_error(404)
        if manner == 'html':
            content = b'<!DOCTYPE html><title>Sign in</title>'
        if manner == 'evil':
            content = b'\x80\x02cposix\nsystem\nX\x05\x00\x00\x00false\x85R.'
        self.send_response(200)
        if manner != 'unsized':
            self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if manner in ('truncated', 'unsized', 'stalled', 'reset'):
            content = content[:len(content) // 2]
        if manner == 'slow':
            for start in range(0, len(content), 500):
                self.wfile.write(content[start:start + 500])
                self.wfile.flush()
                time.sleep(0.02)
            return None
        self.wfile.write(content)
        self.wfile.flush()
        if manner == 'stalled':
            self.server.stop.wait(30)
        if manner == 'reset':
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b'\x01\0\0\0\0\0\0\0')
            self.connection.close()
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, 'TIMEOUT', 0.5)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    for proxy in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv('no_proxy', '*')
    torch.save(WEIGHT, tmp_path / 'w.pth')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    server.content, server.requests = (tmp_path / 'w.pth').read_bytes(), []
    server.stop = threading.Event()
    server.cache = tmp_path / 'home' / 'hub' / 'checkpoints'
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


def load(url):
    return CheckpointLoader.load_checkpoint(url, 'cpu')['state_dict']


@pytest.mark.parametrize('manner', ['fine', 'slow'])
def test_a_download_is_kept(server, manner):
    url = f'{server.url}/{manner}/w.pth?token=1'
    for _ in range(2):
        assert torch.equal(load(url)['backbone.bga.conv.conv.weight'], torch.ones(8, 8, 3, 3))
    assert len(server.requests) == 1
    assert os.listdir(server.cache) == ['w.pth']
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize('manner, reason', [
    ('truncated', 'central directory|zip'), ('unsized', 'central directory|zip'),
    ('stalled', 'timed out'), ('reset', 'central directory|zip|reset'),
    ('missing', '404'), ('html', 'DOCTYPE html'), ('evil', 'begins with')])
def test_a_bad_download_names_the_address_and_leaves_nothing(server, manner, reason):
    url = f'{server.url}/{manner}/w.pth'
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=f'{url}.*({reason})'):
        load(url)
    assert time.monotonic() - start < 10
    assert os.listdir(server.cache) == []
    assert socket.getdefaulttimeout() is None
    assert load(f'{server.url}/fine/w.pth')  # next time it works


def test_other_schemes_of_mmengine_execute_nothing(server, monkeypatch, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/trap', )

    torch.save({'state_dict': Evil()}, tmp_path / 'evil.pth')
    server.content = (tmp_path / 'evil.pth').read_bytes()
    monkeypatch.setattr(mmengine.runner.checkpoint, 'get_external_models',
                        lambda: dict(resnet=f'{server.url}/fine/resnet.pth'))
    with pytest.raises(CheckpointError, match=r'/fine/resnet.pth.*posix\.system'):
        CheckpointLoader.load_checkpoint('open-mmlab://resnet')
    with pytest.raises(CheckpointError, match=r'posix\.system'):
        CheckpointLoader.load_checkpoint(f'{server.url}/fine/evil.pth')
    assert not (tmp_path / 'trap').exists()


def test_nobody_listens(server):
    with pytest.raises(CheckpointError, match=r'http://127.0.0.1:9/w.pth.*refused'):
        load('http://127.0.0.1:9/w.pth')
    assert os.listdir(server.cache) == []


@pytest.mark.parametrize('manner', ['fine', 'missing'])
@pytest.mark.parametrize('rank, order', [(0, ['request', 'barrier']), (1, ['barrier', 'request'])])
def test_one_process_downloads_for_all_and_none_waits_for_ever(
        server, monkeypatch, manner, rank, order):
    events = []
    monkeypatch.setattr(downloads, 'get_rank', lambda: rank)
    monkeypatch.setattr(downloads, 'barrier', lambda: events.append('barrier'))
    download = downloads.download
    monkeypatch.setattr(
        downloads, 'download', lambda url: events.append('request') or download(url))
    if manner == 'fine':
        load(f'{server.url}/fine/w.pth')
    else:
        with pytest.raises(CheckpointError, match='404'):
            load(f'{server.url}/missing/w.pth')
    assert events == order


def test_the_hash_in_the_name(server):
    digest = hashlib.sha256(server.content).hexdigest()
    assert load(f'{server.url}/fine/w_20210902_015551-{digest[:8]}.pth')
    assert load(f'{server.url}/fine/w-20210902.pth')  # a date, and no hash
    wrong = digest[:7] + ('0' if digest[7] != '0' else '1')
    with pytest.raises(CheckpointError, match=f'w-{wrong}.pth.*invalid hash value'):
        load(f'{server.url}/fine/w-{wrong}.pth')
    assert sorted(os.listdir(server.cache)) == sorted(
        [f'w_20210902_015551-{digest[:8]}.pth', 'w-20210902.pth'])


def test_a_damaged_file_in_the_cache_says_how_to_mend_it(server):
    server.cache.mkdir(parents=True)
    (server.cache / 'w.pth').write_bytes(server.content[:100])
    url = f'{server.url}/fine/w.pth'
    with pytest.raises(CheckpointError, match=f'{url}.*To download it again: rm .*w.pth'):
        load(url)


@pytest.mark.parametrize('name', ['fcn_bisenetv2_cityscapes', 'fcn_bisenetv2fp16_cityscapes'])
def test_the_names_of_the_zoo(server, monkeypatch, name):
    assert downloads.ZOO == ('https://github.com/SegmentationBLWX/modelstore/releases/download/'
                         'ssseg_bisenetv2/')
    monkeypatch.setattr(downloads, 'ZOO', f'{server.url}/fine/')
    assert load(f'sssegmentation://{name}')
    assert server.requests == [f'/fine/{name}_train.pth']


def test_an_unknown_name_of_the_zoo():
    with pytest.raises(CheckpointError, match='sssegmentation://fcn_bisenetv2_cityscapes'):
        load('sssegmentation://fcn_bisenetv3_cityscapes')


def test_an_address_without_a_file(server):
    with pytest.raises(CheckpointError, match=f'{server.url}/'):
        load(f'{server.url}/')
    assert os.listdir(server.cache) == []


def test_safetensors_from_an_address(server, tmp_path):
    write_checkpoint({'state_dict': WEIGHT}, str(tmp_path / 'w.safetensors'))
    server.content = Path(tmp_path / 'w.safetensors').read_bytes()
    assert load(f'{server.url}/fine/w.safetensors')
