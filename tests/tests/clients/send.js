// Sends what stands on the standard input with nodemailer: node send.js PORT
'use strict';
const fs = require('fs');
const nodemailer = require('nodemailer');

const transport = nodemailer.createTransport({
    host: '127.0.0.1', port: Number(process.argv[2]), name: 'client.example',
    secure: false, ignoreTLS: true, connectionTimeout: 20000,
});
const envelope = { from: 'news@mkt.acme.example', to: ['customer@example.org'] };
transport.sendMail({ envelope, raw: fs.readFileSync(0) }, (error, info) => {
    console.log(error ? error.message : info.response);
    process.exit(error ? 1 : 0);
});
