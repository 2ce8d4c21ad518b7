// A user's whole lifecycle with the npm package csclient, as it is published.
// usage: node lifecycle.js URL API_KEY SECRET_KEY IMAGE_URL; prints one JSON object.
'use strict';

const CloudStackClient = require('csclient');

const [baseUrl, apiKey, secretKey, image] = process.argv.slice(2);
const client = new CloudStackClient({ baseUrl, apiKey, secretKey, pollingTime: 200, pollingNumber: 600, singleExecutor: true });
const ask = (command, parameters = {}) => new Promise((resolve, reject) =>
    client.execute(command, parameters, (error, answer) => (error ? reject(error) : resolve(answer))));
const listed = async (command, key, parameters = {}) =>
    (await ask(command, parameters))[`${command.toLowerCase()}response`][key] || [];
const result = async (command, key, parameters) => (await ask(command, parameters)).jobresult[key];

const lifecycle = async () => {
    const [zone] = await listed('listZones', 'zone');
    const offering = (await listed('listDiskOfferings', 'diskoffering')).find((each) => each.name === 'one');
    const registered = await ask('registerTemplate', {
        name: 'node b~*/é', displaytext: 'from node', url: image, format: 'QCOW2', hypervisor: 'KVM', zoneid: zone.id });
    const template = registered.registertemplateresponse.template[0];
    for (let tries = 0; tries < 600; tries += 1) {
        const [now] = await listed('listTemplates', 'template', { templatefilter: 'self', id: template.id });
        if (now && now.isready) break;
        await new Promise((resolve) => setTimeout(resolve, 200));
    }
    const volume = await result('createVolume', 'volume', { name: 'data', diskofferingid: offering.id, zoneid: zone.id });
    const copy = await result('createVolume', 'volume', { name: 'copy', templateid: template.id, zoneid: zone.id });
    const snapshots = [];
    for (let n = 0; n < 2; n += 1) snapshots.push(await result('createSnapshot', 'snapshot', { volumeid: copy.id }));
    const from = { snapshotid: snapshots[1].id };
    const golden = await result('createTemplate', 'template', {
        name: 'golden', displaytext: 'golden', ostypeid: template.ostypeid, ...from });
    const again = await result('createVolume', 'volume', { name: 'again', zoneid: zone.id, ...from });
    const [machine] = await listed('listVirtualMachines', 'virtualmachine');
    const attached = machine && await result('attachVolume', 'volume', { id: volume.id, virtualmachineid: machine.id });
    const detached = machine ? await result('detachVolume', 'volume', { id: volume.id }) : {};
    const resized = await result('resizeVolume', 'volume', { id: again.id, size: 1 });
    const link = await result('extractVolume', 'volume', { id: again.id, zoneid: zone.id, mode: 'HTTP_DOWNLOAD' });
    const bytes = Buffer.from(await (await fetch(link.url)).arrayBuffer());
    await ask('revokeExtractUrl', { extractid: link.extractId });
    const volumes = (await listed('listVolumes', 'volume')).map((each) => each.name).sort();
    let refused = 0;
    await ask('deleteVolume', { id: zone.id }).catch((error) => { refused = error.code; });
    for (const each of [volume, copy, again]) await ask('deleteVolume', { id: each.id });
    for (const each of snapshots) await ask('deleteSnapshot', { id: each.id });
    for (const each of [template, golden]) await ask('deleteTemplate', { id: each.id });
    const left = [...await listed('listVolumes', 'volume'), ...await listed('listSnapshots', 'snapshot'),
        ...await listed('listTemplates', 'template', { templatefilter: 'self' })];
    return {
        template: template.name, size: again.size, states: snapshots.map((each) => each.state), golden: golden.size,
        machine: machine ? machine.id : '', attached: Boolean(machine) && attached.virtualmachineid === machine.id,
        detached: detached.virtualmachineid === undefined, resized: resized.size, begins: bytes.subarray(0, 3).toString(),
        volumes, refused, left: left.length };
};

client.on('error', (error) => { throw error; });
client.on('ready', () => lifecycle().then(
    (told) => console.log(JSON.stringify(told)),
    (error) => { console.error(error.code, error.message); process.exitCode = 1; }));
