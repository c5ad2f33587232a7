"""The count autoencoder: what it reads, what it gives, and that a cell does not see its batch."""

from __future__ import annotations

import pytest
import torch
from scvi import REGISTRY_KEYS

from cellsmith.nn.autoencoder import CountAutoencoder, Decoded, dense


def network(**kwargs) -> CountAutoencoder:
    sizes = {"n_batch": 2, "n_labels": 3, "n_latent": 4, "n_hidden": 8, "n_layers": 2, "dropout_rate": 0.1}
    given = {"gene_likelihood": "nb", "dispersion": "gene", "log_variational": True, "use_rep": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CountAutoencoder(6, **{**sizes, **given, **kwargs}).eval()


def cells(n: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        REGISTRY_KEYS.X_KEY: torch.poisson(torch.full((n, 6), 2.0), generator=generator),
        REGISTRY_KEYS.BATCH_KEY: torch.arange(n)[:, None] % 2,
        REGISTRY_KEYS.LABELS_KEY: torch.arange(n)[:, None] % 4,
    }


def test_sparse_and_dense_counts_give_the_same_posterior() -> None:
    net, given = network(), cells()
    sparse = {**given, REGISTRY_KEYS.X_KEY: given[REGISTRY_KEYS.X_KEY].to_sparse_csr()}
    torch.testing.assert_close(net.encode(sparse), net.encode(given))
    torch.testing.assert_close(dense(sparse[REGISTRY_KEYS.X_KEY]), given[REGISTRY_KEYS.X_KEY])


def test_encoder_reads_the_logarithm_of_counts_and_the_batch() -> None:
    net, given = network(), cells()
    columns = torch.nn.functional.one_hot(given[REGISTRY_KEYS.BATCH_KEY].ravel(), 2).float()
    inputs = torch.cat([torch.log1p(given[REGISTRY_KEYS.X_KEY]), columns], dim=1)
    torch.testing.assert_close(net.encode(given), net.encoder_head(net.encoder(inputs)))


def test_decoder_gives_shares_that_know_the_batch_and_not_the_label() -> None:
    net, given = network(), cells()
    z = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    decoded = net.decode(z, given)
    torch.testing.assert_close(decoded.rho.sum(dim=1), torch.ones(9))
    torch.testing.assert_close(decoded.mean(torch.full((9,), 50.0)).sum(dim=1), torch.full((9,), 50.0))
    other_label = {**given, REGISTRY_KEYS.LABELS_KEY: given[REGISTRY_KEYS.LABELS_KEY] * 0}
    assert torch.equal(net.decode(z, other_label).rho, decoded.rho)
    other_batch = {**given, REGISTRY_KEYS.BATCH_KEY: 1 - given[REGISTRY_KEYS.BATCH_KEY]}
    assert not torch.allclose(net.decode(z, other_batch).rho, decoded.rho)


def test_decoding_one_cell_equals_decoding_it_in_a_batch() -> None:
    net, given = network(), cells()
    z, mean = torch.randn(9, 4, generator=torch.Generator().manual_seed(2)), net.encode(given)[0]
    one = {k: v[3:4] for k, v in given.items()}
    torch.testing.assert_close(net.decode(z[3:4], one).rho[0], net.decode(z, given).rho[3], rtol=0, atol=1e-6)
    torch.testing.assert_close(net.encode(one)[0][0], mean[3], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dispersion", "rows"), [("gene", 1), ("gene-batch", 2), ("gene-label", 3)])
def test_dispersion_has_a_row_a_group_and_unlabelled_cells_take_the_mean(dispersion: str, rows: int) -> None:
    net, given = network(dispersion=dispersion), cells()
    assert net.log_theta.shape == (rows, 6)
    with torch.no_grad():
        net.log_theta += torch.arange(float(rows))[:, None]
    theta = net.theta(given[REGISTRY_KEYS.BATCH_KEY], given[REGISTRY_KEYS.LABELS_KEY])
    if dispersion == "gene-label":
        torch.testing.assert_close(theta[3], torch.full((6,), torch.e))  # code 3 of labels 0, 1, 2
    assert theta.shape == ((6,) if dispersion == "gene" else (9, 6))


def test_rates_have_a_total_of_their_own() -> None:
    rates = Decoded(torch.zeros(2, 4), torch.ones(4), None, scale=torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(rates.total(torch.tensor([10.0, 10.0])), torch.tensor([20.0, 30.0]))
